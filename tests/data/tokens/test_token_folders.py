"""Folders of token files, by the names that people give them, are opened as they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.errors import UsageError
from jaxgpt.files import sha256
from jaxgpt.tokenizers.char import CharTokenizer

LLMC = {"fineweb_train_000001.bin": 1, "fineweb_train_000002.bin": 2, "fineweb_val_000000.bin": 3}


def write(folder: Path, contents: dict[str, int], magic: int | None = None) -> None:
    """Write files of 30 equal ids each, with llm.c's header, or a tokenizer that loads sooner than GPT-2's."""
    if magic is None:
        CharTokenizer("abcdefghijkl").save(folder)
    for name, number in contents.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        header = np.zeros(256 if magic else 0, np.int32)
        header[:3] = [magic, 1, 30] if magic else []
        file.write_bytes(header.tobytes() + np.full(30, number, np.uint16).tobytes())


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (LLMC, [1, 2], [3]),
        (
            {"train-00000-of-00002.bin": 1, "train-00001-of-00002.bin": 2, "validation-00000-of-00001.bin": 3},
            [1, 2],
            [3],
        ),
        ({"train_10.bin": 3, "train_9.bin": 2, "train_1.bin": 1, "dev.bin": 4}, [1, 2, 3], [4]),
        ({"train/b.bin": 2, "train/a.bin": 1, "val/a.bin": 3}, [1, 2], [3]),
        ({"train_0.bin": 1, "valid_0.bin": 2, "valid_1.bin": 3, "test_0.bin": 4}, [1], [2, 3]),
        ({"train.bin": 1, "val.bin": 2, "train_000001.bin": 3}, [1], [2]),
        ({"train_1.bin": 1, "val.bin": 2}, [1], [2]),
    ],
)
def test_names_say_what_files_are_for(tmp_path: Path, names: dict[str, int], train: list[int], val: list[int]):
    write(tmp_path, names)
    corpus = load_corpus(tmp_path, block_size=8)
    assert corpus.train[:].tolist() == [number for number in train for _ in range(30)]
    assert corpus.val[:].tolist() == [number for number in val for _ in range(30)]
    with pytest.raises(UsageError, match="has tokens to validate on"):
        load_corpus(tmp_path, block_size=8, val_fraction=0.5)


@pytest.mark.parametrize("names", [["a_1.bin", "a_2.bin"], ["train_1.bin", "train_2.bin"], ["only.bin"], ["val.bin"]])
def test_else_the_last_ids_are_to_validate_on(tmp_path: Path, names: list[str]):
    write(tmp_path, {name: number for number, name in enumerate(names, 1)})
    corpus = load_corpus(tmp_path, block_size=8, val_fraction=0.5)
    whole = [number for number in range(1, len(names) + 1) for _ in range(30)]
    cut = len(whole) // 2
    assert (corpus.train[:].tolist(), corpus.val[:].tolist()) == (whole[:cut], whole[cut:])


def test_others_may_be_validated_on(tmp_path: Path):
    write(tmp_path / "a", LLMC)
    write(tmp_path / "b", {"x_1.bin": 7, "x_2.bin": 8})
    corpus = load_corpus(tmp_path / "a", val_dataset=tmp_path / "b", block_size=8)
    assert set(corpus.train[:].tolist()) == {1, 2} and set(corpus.val[:].tolist()) == {7, 8}
    corpus = load_corpus(tmp_path / "b", val_dataset=tmp_path / "a", block_size=8)
    assert set(corpus.train[:].tolist()) == {7, 8} and set(corpus.val[:].tolist()) == {3}


def test_texts_beside_mean_that_it_is_a_folder_of_texts(tmp_path: Path):
    write(tmp_path, {"train_1.bin": 1})
    (tmp_path / "README.md").write_text("what it is")
    (tmp_path / "merges.txt").write_text("")
    assert len(load_corpus(tmp_path, block_size=2).train) == 27
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "some text"}) + "\n")
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "some more"}) + "\n")
    (tmp_path / "chars.json").unlink()
    corpus = load_corpus(tmp_path, "char", val_fraction=0.5, cache_dir=tmp_path / "cache", block_size=2)
    assert corpus.tokenizer.decode(corpus.train[:]).startswith("some")


def test_files_that_names_count_must_all_be_there(tmp_path: Path):
    write(tmp_path, {f"train-0000{number}-of-00003.bin": 1 for number in (0, 2)})
    with pytest.raises(UsageError, match="has 2 of the 3 files that names as train-00000-of-00003.bin count"):
        load_corpus(tmp_path, block_size=8)


def test_files_of_llm_c_are_read_as_they_are(tmp_path: Path):
    write(tmp_path, LLMC, magic=20240520)
    corpus = load_corpus(tmp_path, block_size=8)
    assert corpus.train[:].tolist() == [1] * 30 + [2] * 30 and corpus.val[:].tolist() == [3] * 30
    assert corpus.tokenizer.name == "gpt2"
    file = tmp_path / "fineweb_train_000001.bin"
    assert TokenFile(file).fingerprint == sha256(file)


def test_a_header_that_does_not_fit_is_named(tmp_path: Path):
    header, path = np.zeros(256, np.int32), tmp_path / "fineweb_train_000001.bin"
    header[:3] = [20240520, 1, 5]

    def message(contents: bytes, vocab_size: int = 50257) -> str:
        path.write_bytes(contents)
        with pytest.raises(UsageError) as caught:
            TokenFile(path, vocab_size)
        return str(caught.value).removeprefix(f"{path}: ")

    ids = np.arange(5, dtype=np.uint16).tobytes()
    path.write_bytes(header.tobytes() + ids)
    assert TokenFile(path)[:].tolist() == [0, 1, 2, 3, 4]
    assert message(header.tobytes() + ids[:-2]) == "8 bytes, but its header says 5 ids of uint16"
    assert message(header.tobytes()) == "0 bytes is no whole number of uint16 ids above 0"
    assert message(header.tobytes()[:500]) == "ends within its header, after 500 bytes of 1024"
    header[1] = 2
    assert message(header.tobytes() + ids) == "begins with llm.c's header of version 2; only version 1 is known"
    header[:3] = [20240801, 7, 2]  # of Llama 3's ids
    wide = np.array([128_000, 7], np.uint32).tobytes()
    assert message(header.tobytes() + wide).startswith("id 128000 at offset 0 is beyond the vocabulary of 50257")
    path.write_bytes(header.tobytes() + wide)
    assert TokenFile(path, 128_256)[:].tolist() == [128_000, 7]
