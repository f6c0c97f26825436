"""What is validated on may be named apart, and may come from elsewhere: text, records, tokens, the hub's data sets."""

import json
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from jaxgpt.data import download
from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.opening import open_source
from jaxgpt.data.sources import PLAYS_FOLDER, Source
from jaxgpt.errors import UsageError

ROWS = [f"row {i} " * 9 for i in range(30)]


def texts(source: Source, split: str) -> list[str]:
    return ["".join(document) for document in source.documents(split)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("All of it. " * 9)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": row, "body": row.upper()}) + "\n" for row in ROWS))
    (tmp_path / "split").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "split" / f"{name}.txt").write_text(f"<{name}>")
    return tmp_path


def test_all_of_either_is_read_and_of_a_folder_with_splits_its_own(files: Path):
    source = open_source(files / "a.txt", val_dataset=files / "b.jsonl", text_column="body")
    assert texts(source, "train") == ["All of it. " * 9] and texts(source, "val") == [row.upper() for row in ROWS]
    assert source.notes == [f"{files / 'b.jsonl'}: of each row the column 'body' is a document"]
    source = open_source(files / "split", val_dataset=files / "split")
    assert (texts(source, "train"), texts(source, "val")) == (["<train>"], ["<valid>"])
    assert source.fingerprint() != open_source(files / "split", val_dataset=files / "a.txt").fingerprint()


def test_of_tokens_it_is_a_file_or_folder_of_tokens(files: Path):
    for name in ("train.bin", "val.bin", "other.bin"):
        np.arange(len(name) + 4, dtype=np.uint16).tofile(files / name)
    for train in (files, files / "train.bin"):
        corpus = load_corpus(train, val_dataset=files / "other.bin", block_size=4)
        assert (len(corpus.train), len(corpus.val)) == (13, 13) and corpus.val.path.name == "other.bin"
    assert load_corpus(files / "other.bin", val_dataset=files, block_size=4).val.path.name == "val.bin"
    with pytest.raises(UsageError, match=r"val_dataset .*a.txt: must be tokens too, a .bin file or a folder, as "):
        load_corpus(files, val_dataset=files / "a.txt", block_size=4)


def test_what_is_trained_on_is_not_validated_on(files: Path, monkeypatch: pytest.MonkeyPatch):
    np.arange(9, dtype=np.uint16).tofile(files / "c.bin")
    (files / "link.bin").symlink_to(files / "c.bin")
    (files / "link.txt").symlink_to(files / "a.txt")
    monkeypatch.chdir(files)
    for train, val in (
        ("a.txt", "a.txt"),
        ("a.txt", "link.txt"),
        ("a.txt", "split/../a.txt"),
        ("b.jsonl", "b.jsonl"),
        ("b.jsonl", files / "b.jsonl"),
        ("c.bin", "link.bin"),
        ("plays", PLAYS_FOLDER / "hamlet.txt"),
        (["split", "a.txt"], "link.txt"),
    ):
        with pytest.raises(UsageError, match=f"val_dataset {val}: dataset .*is trained on.*; leave val_dataset out"):
            load_corpus(train, val_dataset=val, cache_dir=files / "cache", block_size=4)


def test_what_contradicts_itself_is_refused(files: Path):
    with pytest.raises(UsageError, match=r"val_fraction 0.1: not with val_dataset"):
        load_corpus(files / "a.txt", val_dataset=files / "a.txt", val_fraction=0.1, block_size=4)
    with pytest.raises(UsageError, match="val_dataset 'playz': no such file or folder, nor one of plays, .*'plays'"):
        open_source(files / "a.txt", val_dataset="playz")


LINES = {
    "train-00000-of-00002": ["", " = A title = \n", "", " It was . \n"],
    "train-00001-of-00002": ["", " It is . \n"],
    "validation-00000-of-00001": [" = Another = \n", ""],
    "test-00000-of-00001": ["", " = The last = \n", " It will be . \n"],
}


@pytest.fixture
def wikitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and a hub whose data set is in the layout of WikiText's."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def snapshot_download(repo: str, *, revision: str, allow_patterns: str, local_dir: Path, **_: object) -> Path:
        assert (repo, revision) == ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
        for name, lines in LINES.items():
            for config in ("wikitext-2-raw-v1", "wikitext-2-v1"):
                if fnmatch(file := f"{config}/{name}.parquet", allow_patterns):
                    (local_dir / config).mkdir(parents=True, exist_ok=True)
                    parquet.write_table(pa.table({"text": lines}), local_dir / file)
        return local_dir

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    return tmp_path


def test_a_corpus_with_splits_is_a_text_a_file_and_tested_on_a_part_of_its_own(wikitext: Path):
    tested = open_source("wikitext2", cache_dir=wikitext, test=True)
    assert texts(tested, "val") == ["\n\n".join(LINES["test-00000-of-00001"])]
    folder = wikitext / "downloads/wikitext2/wikitext-2-raw-v1"
    assert [file.name for file in folder.iterdir()] == ["test-00000-of-00001.parquet"]  # nothing else was asked for
    source = open_source("wikitext2", cache_dir=wikitext)
    assert texts(source, "train") == ["\n\n".join(LINES[f"train-0000{i}-of-00002"]) for i in (0, 1)]
    assert texts(source, "val") == ["\n\n".join(LINES["validation-00000-of-00001"])]
    assert source.fingerprint() != tested.fingerprint()
    (wikitext / "a.txt").write_text("Something else. ")
    assert texts(open_source(wikitext / "a.txt", val_dataset="wikitext2", cache_dir=wikitext), "val") == texts(
        source, "val"
    )
    corpus = load_corpus("wikitext2", cache_dir=wikitext, block_size=4)
    assert corpus.tokenizer.name == "gpt2"
    assert corpus.tokenizer.decode(corpus.val[:]) == "\n\n".join(LINES["validation-00000-of-00001"])
    with pytest.raises(UsageError, match="val_fraction 0.2: wikitext2 has files to validate on"):
        open_source("wikitext2", 0.2, cache_dir=wikitext)


def test_a_pinned_revision_that_is_there_whole_needs_no_network(wikitext: Path, monkeypatch: pytest.MonkeyPatch):
    files = download.download("wikitext2", wikitext)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[Errno -2] Name or service not known")  # as HTTP clients' errors, of no class of Python's

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    assert download.download("wikitext2", wikitext) == files and len(files) == 2
    files[1].unlink()
    where = r"wikitext-2-raw-v1/train-\*.parquet of the hub's data set Salesforce/wikitext at b08601e\w+"
    why = f"cannot be downloaded .*not known.* into {wikitext}/.*/wikitext2 by hand"
    with pytest.raises(UsageError, match=f"'wikitext2': {where} {why}"):
        download.download("wikitext2", wikitext)


def test_a_data_set_of_the_hub_is_read_by_its_column(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = [{"body": text, "id": i} for i, text in enumerate([*ROWS, None])]
    splits = {"train": datasets.Dataset.from_list(rows), "validation": datasets.Dataset.from_list(rows[:3])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    name = f"hub:{tmp_path / 'saved'}"
    source = open_source(name, text_column="body")
    assert texts(source, "train") == ROWS and texts(source, "val") == ROWS[:3]
    assert source.notes[0] == f"{name}: its split validation is validated on"
    source = open_source(f"{name}:train", 0.1, text_column="body")
    assert texts(source, "val") == ROWS[::10] and len(texts(source, "train")) == 27
    corpus = load_corpus(name, text_column="body", cache_dir=tmp_path, block_size=4)
    assert corpus.tokenizer.name == "gpt2" and corpus.tokenizer.decode(corpus.val[:]).split("<|endoftext|>") == ROWS[:3]
    for column, message in ((None, "no column 'text'; .* 'body', 'id'"), ("id", "row 1: 'id' is 0; it must be a text")):
        with pytest.raises(UsageError, match=message):
            texts(open_source(name, text_column=column), "train")
