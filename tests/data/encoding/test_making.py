"""A corpus is the same bytes whatever ended the processes that made it, and what these had done is not done again."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgpt.data import sources
from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.encoding import cutting, growing, making, unfinished, workers
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.data.tokens.token_writer import TokenWriter
from jaxgpt.errors import RunError
from jaxgpt.notes import note
from jaxgpt.tokenizers.tokenizer import BPETokenizer

ROOT = Path(__file__).parents[3]
TEXT = (PLAYS_FOLDER / "tempest.txt").read_text()[:9_000]
DOCUMENTS = [text for text in TEXT.split("\n\n") if text.strip()]
GIVEN = BPETokenizer.train([TEXT], 270)
Made = dict[str, bytes]


class Killed(BaseException):
    """In the place of a signal that nothing in the process hears."""


def write_all_kinds(folder: Path) -> Path:
    """Write documents in each kind of file that holds records."""
    folder.mkdir()
    parts = [DOCUMENTS[i::5] for i in range(5)]
    lines = ["".join(f"{json.dumps({'text': text})}\n" for text in part) for part in parts]
    (folder / "a.jsonl").write_text(lines[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[1].encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": parts[2]}), folder / "c.parquet", row_group_size=7)
    (folder / "d.csv").write_text("text\n" + "".join('"{}"\n'.format(text.replace('"', '""')) for text in parts[3]))
    (folder / "e.json").write_text(json.dumps([{"text": text} for text in parts[4]]))
    return folder


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(TEXT[i * 3_000 : (i + 1) * 3_000])
    return folder


def files_of(cache: Path) -> Made:
    """Return all that the cache holds."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def make(dataset: Path, cache: Path, kind: str | BPETokenizer) -> None:
    load_corpus(dataset, kind, cache_dir=cache, block_size=8, bpe_vocab_size=270)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut texts into some ten tasks, and keep what each gives, without waiting for the disk."""
    note.cache_clear()
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(sources, "_READ_BYTES", 400)
    monkeypatch.setattr(cutting, "_CHUNK", 800)
    monkeypatch.setattr(growing, "_KEEP_EVERY", 0.0)


def killed_at(event: int, begin: Callable[[], None]) -> bool:
    """Kill what is begun before the event of this number, on whose way to the disk order matters; return whether."""
    left = event

    def dying(act: Callable) -> Callable:
        def counted(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return act(*args, **more)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for where, name in (
            (os, "fsync"), (os, "replace"), (Path, "rename"), (TokenWriter, "append"), (TokenWriter, "sync"),
            (growing.Progress, "write"), (workers, "_encode"), (BPETokenizer, "save"),
        ):  # fmt: skip
            patch.setattr(where, name, dying(getattr(where, name)))
        patch.setattr(unfinished, "_leave", lambda place: None)  # which a process that is killed does not come to
        try:
            begin()
        except Killed:
            return True
    return False


@pytest.fixture(scope="module", params=["char", "bpe", GIVEN], ids=["char", "bpe", "given"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Data sets of both kinds, and what is made of them in one go."""
    folder = tmp_path_factory.mktemp("whole")
    datasets = [write_texts(folder / "texts"), write_all_kinds(folder / "records")]
    for dataset in datasets:
        make(dataset, folder / f"cache-{dataset.name}", request.param)
    return request.param, [(dataset, files_of(folder / f"cache-{dataset.name}")) for dataset in datasets]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.integers(0, 60), min_size=1, max_size=4), which=st.integers(0, 1), data=st.data())
def test_killed_is_uninterrupted_byte_for_byte(uninterrupted, tmp_path_factory, events, which, data):
    """Killed again and again, also where a machine that lost power has something else behind what was kept."""
    kind, made = uninterrupted
    dataset, whole = made[which]
    cache = tmp_path_factory.mktemp("cache")
    for event in events:
        killed_at(event, lambda: make(dataset, cache, kind))
        for path in cache.glob("corpora/.unfinished-*/new/*.bin"):
            split = path.stem
            tokens = growing.Progress.read(path.parents[1]).tokens.get(split, 0)
            if data.draw(st.booleans()):
                path.write_bytes(path.read_bytes()[: 2 * tokens] + b"\0" * data.draw(st.integers(0, 5)))
    make(dataset, cache, kind)
    assert files_of(cache) == whole


def test_what_was_kept_is_not_encoded_again(uninterrupted, tmp_path, monkeypatch, capfd):
    kind, made = uninterrupted
    dataset, whole = made[0]
    encoded, trained = [], []
    encode, learn = workers._encode, making.make_tokenizer
    monkeypatch.setattr(workers, "_encode", lambda *args: encoded.append(args[1]) or encode(*args))
    monkeypatch.setattr(making, "make_tokenizer", lambda *args: trained.append(args[1]) or learn(*args))
    kills = sum(killed_at(event, lambda: make(dataset, tmp_path, kind)) for event in (40, 20, 20, 200))
    assert files_of(tmp_path) == whole and kills == 3
    assert len(encoded) - len({json.dumps(texts) for texts in encoded}) <= kills, "but what was at work when it ended"
    assert trained == ([] if kind is GIVEN else [kind])
    assert "tokens are there already, encoded by an earlier run that was stopped" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["ids", "short", "progress", "tokenizer", "gone", "cut otherwise"])
def test_what_is_not_as_it_was_kept_is_made_anew(tmp_path, monkeypatch, damage):
    dataset = write_texts(tmp_path / "texts")
    make(dataset, tmp_path / "whole", "bpe")
    cache = tmp_path / "cache"
    assert killed_at(60, lambda: make(dataset, cache, "bpe"))
    [place] = cache.glob("corpora/.unfinished-*/")
    train = place / "new" / "train.bin"
    before = train.read_bytes()
    assert growing.Progress.read(place).tasks > 2
    match damage:
        case "ids":
            train.write_bytes(bytes([before[0] ^ 1]) + before[1:])
        case "short":
            train.write_bytes(before[:100])
        case "progress":
            (place / "progress.json").write_bytes((place / "progress.json").read_bytes()[:-20])
        case "tokenizer":
            (place / "new" / "merges.txt").write_text("")
        case "gone":
            train.unlink()
        case "cut otherwise":
            monkeypatch.setattr(cutting, "_CHUNK", 600)
    make(dataset, cache, "bpe")
    assert files_of(cache) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (TokenWriter, "append"), (Path, "rename")])
def test_a_full_disk_is_a_line_and_with_room_it_goes_on(tmp_path, monkeypatch, where, name):
    dataset = write_texts(tmp_path / "texts")
    make(dataset, tmp_path / "whole", "char")
    calls, act = 0, getattr(where, name)

    def fail(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls > (12 if name != "rename" else 0):
            raise OSError(28, "No space left on device")
        return act(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        with pytest.raises(RunError, match="cannot be written: No space left on device; what was encoded is kept, and"):
            make(dataset, tmp_path / "cache", "char")
    encoded = []
    encode = workers._encode
    monkeypatch.setattr(workers, "_encode", lambda *args: encoded.append(args[1]) or encode(*args))
    make(dataset, tmp_path / "cache", "char")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole") and len(encoded) < 10


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(growing, "TokenWriter", fail)
    with pytest.raises(RunError, match="No space left on device$"):
        make(write_texts(tmp_path / "texts"), tmp_path / "cache", GIVEN)
    assert not list((tmp_path / "cache" / "corpora").iterdir())


# Kills its own process, and with it its helpers, once so many texts were encoded.
KILLED = """
import os, signal, sys
from jaxgpt.data.encoding import cutting, growing
from jaxgpt.data.corpus import load_corpus
def append(self, task, ids, append=growing.GrowingCorpus.append):
    append(self, task, ids)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    cutting._CHUNK, growing._KEEP_EVERY = 800, 0.0
    left = [int(sys.argv[3])]
    growing.GrowingCorpus.append = append
    load_corpus(sys.argv[1], "bpe", cache_dir=sys.argv[2], block_size=8, bpe_vocab_size=270, workers=int(sys.argv[4]))
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_so_is_what_is_really_killed(tmp_path, processes):
    dataset = write_all_kinds(tmp_path / "records")
    make(dataset, tmp_path / "whole", "bpe")
    (script := tmp_path / "script.py").write_text(KILLED)
    codes, errors = [], ""
    for left in (1, 4, 3, -1):
        argv = [sys.executable, script, dataset, tmp_path / "cache", str(left), str(processes)]
        done = subprocess.run(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=-1, text=True)
        codes.append(done.returncode)
        errors += done.stderr
    assert codes == [-signal.SIGKILL] * 3 + [0], errors
    assert errors.count("tokens are there already") == 3
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")


# Prints by how many bytes each text's encoding raised the process's memory at most, and what it was before.
PEAKS = """
import sys
from pathlib import Path
from jaxgpt.data.corpus import load_corpus
from jaxgpt.tokenizers.tokenizer import load_tokenizer
def status(name):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
tokenizer = "char" if sys.argv[1] == "char" else load_tokenizer(sys.argv[1])
for place in sys.argv[3:]:
    Path("/proc/self/clear_refs").write_text("5")
    load_corpus(place, tokenizer, cache_dir=sys.argv[2], block_size=8, workers=0)
    print(status("VmHWM"))
"""


def write_large(path: Path, kind: str, size: int) -> Path:
    """Write so many characters: in one line, in rows of all sizes, in one group of rows."""
    text = (PLAYS_FOLDER / "tempest.txt").read_text()[:80_000]
    path.mkdir()
    texts = [f"{i} {text}" for i in range(size // len(text))]
    match kind:
        case "line":
            (path / "a.txt").write_text(" ".join(texts).replace("\n", " "))
        case "rows":
            with (path / "a.jsonl").open("w") as file:
                for i in range(0, len(texts), 25):
                    rows = ["".join(texts[i : i + 20]), *texts[i + 20 : i + 25]]
                    file.writelines(f"{json.dumps({'text': row})}\n" for row in rows)
        case "group":
            rows = [
                f"{i} {text[begin : begin + 2_000]}"
                for i, text in enumerate(texts)
                for begin in range(0, 80_000, 2_000)
            ]
            pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path / "a.parquet")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [("line", "bpe"), ("rows", "bpe"), ("group", "char")],
)
def test_memory_does_not_grow_with_the_text(tmp_path, kind, tokenizer):
    """24 MB more of text take not half as much memory, whatever they are in."""
    GIVEN.save(tmp_path / "tokenizer")
    places = [write_large(tmp_path / f"{kind}-{i}", kind, size << 20) for i, size in enumerate((10, 11, 35))]
    opened = "char" if tokenizer == "char" else tmp_path / "tokenizer"
    argv = [sys.executable, "-c", PEAKS, opened, tmp_path / "cache", *places]
    # What is freed is given back, not kept by pyarrow's allocator or between blocks of glibc's.
    allocators = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **allocators, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    _, small, large = map(int, done.stdout.split())
    assert large - small < 12 << 20
