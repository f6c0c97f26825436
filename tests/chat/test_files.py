"""A folder's files are splits where their names say so; what is named test is never read, and a change is noticed."""

from pathlib import Path

import datasets
import pytest

from jaxgpt.chat.files import ExampleFiles, find_files, fingerprint
from jaxgpt.errors import UsageError
from jaxgpt.files import sha256


def folder(path: Path, *names: str) -> str:
    path.mkdir()
    for name in names:
        (path / name).write_text(name)
    return str(path)


@pytest.mark.parametrize("val", ["valid", "validation", "val", "dev"])
def test_a_folders_files_are_splits_by_their_names(tmp_path: Path, capsys, val: str):
    data = folder(tmp_path / "data", "train.jsonl", f"{val}.jsonl", "test.jsonl", "README.md")
    assert find_files(data) == ExampleFiles((f"{data}/train.jsonl",), (f"{data}/{val}.jsonl",))
    said = f"{data}: train.jsonl is trained on, {val}.jsonl is validated on, test.jsonl is left out, by their names"
    assert f"note: {said}\n" in capsys.readouterr().err
    with pytest.raises(UsageError, match=f"val_fraction 0.2: .*data has .*{val}.jsonl and so on to validate on"):
        find_files(data, val_fraction=0.2)
    assert find_files(data, "other.csv") == ExampleFiles((f"{data}/train.jsonl",), ("other.csv",))
    assert find_files("one.csv", data) == ExampleFiles(("one.csv",), (f"{data}/{val}.jsonl",))


def test_what_is_named_test_is_not_validated_on_either(tmp_path: Path):
    data = folder(tmp_path / "data", "train-00.parquet", "train-01.parquet", "test-00.parquet")
    assert find_files(data) == ExampleFiles((f"{data}/train-00.parquet", f"{data}/train-01.parquet"), ())
    heap = folder(tmp_path / "heap", "a.jsonl", "b.jsonl")
    assert find_files(heap) == ExampleFiles((f"{heap}/a.jsonl", f"{heap}/b.jsonl"), ())
    assert find_files(f"{heap}/a.jsonl") == ExampleFiles((f"{heap}/a.jsonl",), ())


def test_a_change_of_any_file_is_noticed(tmp_path: Path):
    data = Path(folder(tmp_path / "data", "a.jsonl", "b.jsonl"))
    files = find_files(str(data)).train
    assert fingerprint(files[:1]) == sha256(data / "a.jsonl")
    before = fingerprint(files)
    (data / "b.jsonl").write_text("other")
    assert fingerprint(files) != before


def test_what_is_trained_on_is_not_validated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = folder(tmp_path / "data", "a.jsonl", "b.jsonl")
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    for val in (data, "data", f"{data}/b.jsonl", "./data/../data/b.jsonl", "link/b.jsonl"):
        with pytest.raises(UsageError, match=f"val_dataset {val}: dataset {data}.* is trained on") as caught:
            find_files(data, val)
        assert "leave val_dataset out" in str(caught.value)
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk("saved")
    with pytest.raises(UsageError, match="is trained on"):
        find_files("hub:saved", "hub:./saved:train")
    split = folder(tmp_path / "split", "train.jsonl", "val.jsonl")
    assert find_files(split, split) == find_files(split)
