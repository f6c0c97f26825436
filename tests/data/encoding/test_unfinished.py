"""Who may work on an unfinished corpus, and what becomes of those on which nobody works."""

import os
from pathlib import Path

import pytest

from jaxgpt.data.encoding import unfinished as module
from jaxgpt.data.encoding.growing import Progress
from jaxgpt.data.encoding.unfinished import unfinished
from jaxgpt.errors import RunError, UsageError


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*") if path.suffix != ".lock")


def stop(folder: Path, key: str, *, kept: float) -> None:
    """Leave a corpus unfinished, in which something was kept last at this time; nothing was at 0."""
    with pytest.raises(KeyboardInterrupt), unfinished(folder / key, key) as place:
        if kept:
            Progress("tokenizer").write(place)
            os.utime(place / "progress.json", (kept, kept))
        raise KeyboardInterrupt


def test_only_the_last_of_others_is_kept_whatever_is_in_them(tmp_path: Path):
    stop(tmp_path, "nothing", kept=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".unfinished-by-an-earlier-version").mkdir()
    for key, time in (("b", 20), ("a", 30), ("c", 10)):
        stop(tmp_path, key, kept=time)
    with unfinished(tmp_path / "d", "d"):
        assert hidden(tmp_path) == [".unfinished-a", ".unfinished-d"]
    assert hidden(tmp_path) == [".unfinished-a"]
    with unfinished(tmp_path / "a", "a") as place:
        assert Progress.read(place).tokenizer == "tokenizer"
    assert list(tmp_path.iterdir()) == []


def test_what_is_at_work_is_left_alone(tmp_path: Path):
    with unfinished(tmp_path / "a", "a") as first, unfinished(tmp_path / "b", "b") as second:
        assert first.is_dir() and second.is_dir()
        assert module._lock(first) is None


def test_after_an_error_of_the_input_nothing_is_left(tmp_path: Path):
    with pytest.raises(UsageError), unfinished(tmp_path / "a", "a") as place:
        Progress("tokenizer").write(place)
        raise UsageError("x.txt: not UTF-8")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_each_process_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **more: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(module, "lock_descriptor", fail)
    with unfinished(tmp_path / "a", "a") as first, unfinished(tmp_path / "a", "a") as second:
        assert first != second and first.is_dir() and second.is_dir()
        Progress("tokenizer").write(second)
    assert hidden(tmp_path) == []
    with pytest.raises(RunError, match="No space left on device$"), unfinished(tmp_path / "a", "a") as place:
        Progress("tokenizer").write(place)
        raise OSError(28, "No space left on device")
    assert hidden(tmp_path) == []


def test_what_another_process_has_made_in_the_meantime_is_no_error(tmp_path: Path):
    with unfinished(tmp_path / "a", "a") as place:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "train.bin").touch()
        (place / "new").mkdir()
        (place / "new").rename(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
