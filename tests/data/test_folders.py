"""Of a folder what can be read is read, in order, each file as what it is and for what it is named."""

import os
from pathlib import Path

import pytest

from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.opening import open_source
from jaxgpt.data.sources import Source
from jaxgpt.errors import UsageError


def texts(source: Source, split: str) -> list[str]:
    return ["".join(document) for document in source.documents(split)]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path):
    for name in ("b.txt", "a/z.txt", "a/.hidden", ".git/x", "c 漢.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    texts = ["".join(d) for d in open_source(tmp_path, 0.001).documents("train")]
    assert "".join(texts) == "<a/z.txt><b.txt><c 漢.md>"[:-1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files in this folder"):
        open_source(tmp_path / "empty", 0.1)


def test_links_are_followed_but_never_twice_and_what_is_left_out_is_said(tmp_path: Path):
    for name in ("data/a.txt", "data/sub/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    links = {
        "link": "../elsewhere",
        "sub/up": "..",
        "sub/twice": "../../elsewhere/deep",
        "sub/top": "/",
        "e.txt": "sub/b.txt",
    }
    for name, target in {**links, "gone": "nowhere", ".hidden": "nowhere"}.items():
        (tmp_path / "data" / name).symlink_to(target)
    os.mkfifo(tmp_path / "data" / "pipe")
    source = open_source(tmp_path / "data", 0.1)
    names = [str(path.relative_to(tmp_path / "data")) for path in source.paths]
    assert names == ["a.txt", "e.txt", "link/c.txt", "link/deep/d.txt", "sub/b.txt"]
    left_out = {note.partition(" is left out: ")[0]: note.partition(" is left out: ")[2] for note in source.notes}
    assert {str(Path(name).relative_to(tmp_path / "data")): why for name, why in left_out.items()} == {
        "gone": "a link to nothing",
        "pipe": "no file",
        "sub/top": "it leads to /, once more",
        "sub/twice": f"it leads to {tmp_path}/elsewhere/deep, once more",
        "sub/up": f"it leads to {tmp_path}/data, once more",
    }


def test_a_folder_that_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def scandir(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=f"{tmp_path}: cannot be read: Permission denied"):
        open_source(tmp_path, 0.1)


@pytest.mark.parametrize("val", ["valid", "validation", "val"])
@pytest.mark.parametrize(
    "form", ["{}.txt", "Stories-{}.txt", "{}/0001.txt", "wiki.{}.tokens", "data/{}-00000-of-00001.txt"]
)
def test_files_named_train_and_val_are_the_splits_and_test_is_never_read(tmp_path: Path, val: str, form: str):
    names = {form.format(name): f"of {name}" for name in ("train", val, "test")}
    source = open_source(write(tmp_path, {**names, "README.md": "About"}))
    assert texts(source, "train") == ["of train"] and texts(source, "val") == [f"of {val}"]
    assert len(source.notes) == 1 and "left out" in source.notes[0] and "README.md" in source.notes[0]
    assert not any("test" in str(path.relative_to(tmp_path)) for path in source.paths)
    with pytest.raises(UsageError, match="val_fraction 0.2: .* has files to validate on"):
        open_source(tmp_path, 0.2)


def test_without_a_file_to_validate_on_a_part_of_train_is(tmp_path: Path):
    source = open_source(write(tmp_path, {"train.txt": "0123456789", "test.txt": "left alone"}))
    assert texts(source, "train") == ["012345678"] and texts(source, "val") == ["9"]
    assert "test.txt is left out" in source.notes[0]


def test_names_among_many_others_are_no_split(tmp_path: Path):
    source = open_source(
        write(tmp_path, {f"{name}.md": f"<{name}>" for name in ("a", "b", "c", "test", "train")}), 0.01
    )
    assert "".join(texts(source, "train") + texts(source, "val")) == "<a><b><c><test><train>"


def test_records_are_not_mixed_with_texts(tmp_path: Path):
    row = '{"text": "a document"}\n'
    for kind, files in {
        "data": {"a.jsonl": row * 3, "README.md": "About", "more.csv": "text\nb\nc\n", "notes.txt": "Not these"},
        "table": {"a.csv": "text\na document\nb\nc\n", "LICENSE": "Mine"},
    }.items():
        source = open_source(write(tmp_path / kind, files))
        assert set(texts(source, "train") + texts(source, "val")) == {"a document", "b", "c"}
        assert "left out" in " ".join(source.notes)
    source = open_source(write(tmp_path / "code", {"a.py": "pass", "b.py": "pass", "package.json": "[]"}), 0.01)
    assert "".join(texts(source, "train") + texts(source, "val")) == "passpass[]"
    assert source.notes == ["package.json is read as plain text, as the texts beside are"]


def test_tokens_too_are_split_by_names(tmp_path: Path):
    made = load_corpus("plays", "char", cache_dir=tmp_path / "cache", block_size=8).train.path.parent
    for file in made.iterdir():
        (tmp_path / file.name.replace("val.bin", "valid.bin")).write_bytes(file.read_bytes())
    (tmp_path / "test.bin").write_bytes(b"xx")
    corpus = load_corpus(tmp_path, block_size=8)
    assert corpus.val.path.name == "valid.bin" and corpus.notes == (f"{tmp_path}: test.bin is left out",)
    with pytest.raises(UsageError, match="val_fraction 0.2"):
        load_corpus(tmp_path, block_size=8, val_fraction=0.2)
