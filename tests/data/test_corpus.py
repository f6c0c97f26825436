"""A corpus is the whole text in ids, made once, and the same however it was cut up and by how many processes."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data import corpus as corpus_module
from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.opening import NAMES
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import BPETokenizer, load_tokenizer

TEXT = (PLAYS_FOLDER / "tempest.txt").read_text()


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 600)


def test_the_split_is_that_of_nanogpt(tmp_path: Path):
    (tmp_path / "x.txt").write_text(TEXT)
    corpus = load_corpus(tmp_path / "x.txt", cache_dir=tmp_path, block_size=8)
    cut = int(len(TEXT) * 0.9)
    assert corpus.tokenizer.name == "char" and corpus.notes == ()
    assert corpus.tokenizer.decode(corpus.train[:]) == TEXT[:cut]
    assert corpus.tokenizer.decode(corpus.val[:]) == TEXT[cut:]


def test_what_was_taken_out_is_said_also_of_a_text_that_comes_from_the_cache(tmp_path: Path, monkeypatch):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + b"some words\r\n" * 100)
    first = load_corpus(tmp_path / "x.txt", cache_dir=tmp_path, block_size=8)
    monkeypatch.setattr(corpus_module, "encode_corpus", None)
    again = load_corpus(tmp_path / "x.txt", cache_dir=tmp_path, block_size=8)
    assert [note.removeprefix(f"{tmp_path / 'x.txt'}: ") for note in again.notes] == [
        "left out the byte order mark",
        "read 100 carriage returns as line ends",
    ]
    assert first.notes == again.notes


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_are_those_of_the_whole_text(tmp_path: Path, workers: int, bpe: BPETokenizer):
    (tmp_path / "x.txt").write_text(TEXT * 30)
    corpus = load_corpus(tmp_path / "x.txt", bpe, cache_dir=tmp_path, block_size=8, workers=workers)
    cut = int(len(TEXT) * 30 * 0.9)
    assert corpus.train[:].tolist() == bpe.encode((TEXT * 30)[:cut])
    assert corpus.val[:].tolist() == bpe.encode((TEXT * 30)[cut:])


def test_documents_are_separated(tmp_path: Path, bpe: BPETokenizer):
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(f"document {i}.")
    train = load_corpus(folder, bpe, cache_dir=tmp_path, block_size=4).train[:]
    assert bpe.decode(train).split("<|endoftext|>")[:3] == ["document 0.", "document 1.", "document 2."]
    assert (train == bpe.eos_token_id).sum() == bpe.decode(train).count(".")
    chars = load_corpus(folder, "char", cache_dir=tmp_path, block_size=4)
    assert chars.tokenizer.decode(chars.train[:]).startswith("document 0.\ndocument 1.\n")


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_second_time_nothing_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str):
    (tmp_path / "x y 漢.txt").write_text(TEXT)

    def load():
        return load_corpus(tmp_path / "x y 漢.txt", tokenizer, cache_dir=tmp_path, block_size=8, bpe_vocab_size=300)

    first = load()
    (tmp_path / "x y 漢.txt").touch()
    with monkeypatch.context() as patch:
        patch.delattr(corpus_module, "encode_corpus")
        again = load()
    assert again.train.fingerprint == first.train.fingerprint
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert again.tokenizer.vocab_size == first.train.vocab_size == first.tokenizer.vocab_size
    (tmp_path / "x y 漢.txt").write_text(TEXT + "More.")
    assert load().val.fingerprint != first.val.fingerprint
    assert len(list((tmp_path / "corpora").iterdir())) == 2  # and nothing unfinished


def test_the_plays_are_about_as_much_as_tiny_shakespeare(tmp_path: Path):
    corpus = load_corpus("plays", cache_dir=tmp_path, block_size=256)
    assert 1_200_000 < len(corpus.train) + len(corpus.val) < 1_600_000
    assert 60 <= corpus.tokenizer.vocab_size <= 90
    text = corpus.tokenizer.decode(np.concatenate([corpus.train[:], corpus.val[:]])).lower()
    assert not any(word in text for word in ("gutenberg", "etext", "copyright"))


def test_a_folder_of_nanogpt_is_used_as_it_is(tmp_path: Path):
    ids = load_tokenizer("gpt2").encode(TEXT[:5000])
    for split in ("train", "val"):
        np.array(ids, np.uint16).tofile(tmp_path / f"{split}.bin")
    corpus = load_corpus(tmp_path, cache_dir=tmp_path / "cache", block_size=8)
    assert corpus.train[:].tolist() == ids and corpus.tokenizer.name == "gpt2"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="tokenizer 'char': made from text"):
        load_corpus(tmp_path, "char", block_size=8)


def test_a_single_token_file_is_one_too_and_its_last_ids_are_for_validation(tmp_path: Path, bpe: BPETokenizer):
    ids = load_tokenizer("gpt2").encode(TEXT[:9000])
    np.array(ids, np.uint16).tofile(tmp_path / "mine.bin")
    for fraction, cut in ((None, int(len(ids) * 0.9)), (0.5, len(ids) // 2)):
        corpus = load_corpus(tmp_path / "mine.bin", block_size=8, val_fraction=fraction)
        assert corpus.train[:].tolist() == ids[:cut] and corpus.val[:].tolist() == ids[cut:]
        assert corpus.tokenizer.name == "gpt2"
    made = load_corpus("plays", bpe, cache_dir=tmp_path, block_size=8)
    again = load_corpus(made.train.path, block_size=8)
    assert again.tokenizer.fingerprint == bpe.fingerprint
    assert len(again.train) + len(again.val) == len(made.train)
    with pytest.raises(UsageError, match="made by tokenizer 'bpe', another one"):
        load_corpus(made.train.path, "gpt2", block_size=8)
    with pytest.raises(UsageError, match="mine.bin has 9 tokens; block_size 8000 needs"):
        np.array(ids[:10], np.uint16).tofile(tmp_path / "mine.bin")
        load_corpus(tmp_path / "mine.bin", block_size=8000)


def test_what_is_left_out_of_a_folder_is_said_also_where_the_ids_come_from_the_cache(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(TEXT)
    assert load_corpus(tmp_path / "data", cache_dir=tmp_path, block_size=8).notes == ()
    (tmp_path / "data" / "b.txt").symlink_to("nowhere")
    for _ in range(2):
        [note] = load_corpus(tmp_path / "data", cache_dir=tmp_path, block_size=8).notes
        assert note == f"{tmp_path / 'data' / 'b.txt'} is left out: a link to nothing"


def test_so_is_one_of_characters(tmp_path: Path):
    """What nanoGPT's data/shakespeare_char/prepare.py does."""
    chars = sorted(set(TEXT))
    stoi = {char: i for i, char in enumerate(chars)}
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    cut = int(len(TEXT) * 0.9)
    for split, text in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        np.array([stoi[char] for char in text], np.uint16).tofile(tmp_path / f"{split}.bin")
    for tokenizer in (None, "char"):
        corpus = load_corpus(tmp_path, tokenizer, block_size=8)
        assert corpus.tokenizer.name == "char" and corpus.train.vocab_size == len(chars)
        assert corpus.tokenizer.decode(corpus.train[:]) + corpus.tokenizer.decode(corpus.val[:]) == TEXT
    np.array([len(chars)] * 9, np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(UsageError, match=f"id {len(chars)} at offset 0 is beyond the vocabulary of {len(chars)}"):
        load_corpus(tmp_path, block_size=8)


def test_a_cached_corpus_is_a_dataset_too(tmp_path: Path, bpe: BPETokenizer):
    made = load_corpus("plays", "char", cache_dir=tmp_path, block_size=8)
    for tokenizer in (None, "char", made.tokenizer):
        again = load_corpus(made.train.path.parent, tokenizer, block_size=8)
        assert again.tokenizer.fingerprint == made.tokenizer.fingerprint
    with pytest.raises(UsageError, match="made by tokenizer 'char', another one"):
        load_corpus(made.train.path.parent, bpe, block_size=8)
    (made.train.path.parent / "val.bin").unlink()
    with pytest.raises(UsageError, match="val.bin: cannot be read"):
        load_corpus(made.train.path.parent, block_size=8)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("dataset", "shown"), [(range(10**12), "0"), ([[]], "[]"), ([], "[]")])
def test_several_of_what_no_data_set_is(dataset, shown: str):
    with pytest.raises(UsageError) as caught:
        load_corpus(dataset, block_size=8)
    assert str(caught.value) == f"dataset is {shown}; it must be a name, or the path of a file or folder"


def test_bad_input_is_named(tmp_path: Path):
    def message(dataset: str | Path, **arguments: object) -> str:
        with pytest.raises(UsageError) as caught:
            load_corpus(dataset, cache_dir=tmp_path / "cache", block_size=8, **arguments)
        return str(caught.value)

    assert f"nor one of {', '.join(NAMES)}; did you mean 'shakespeare'?" in message("shakespear")
    path = tmp_path / "x.txt"
    path.write_text(" \n\t" * 100)
    assert "no text in it" in message(path)
    path.write_text("")
    assert "no text in it, only 0 characters" in message(path)
    path.write_text("too short")
    assert "train.bin has 8 tokens; block_size 8 needs at least 9" in message(path)
    path.write_text("long enough " * 9)
    assert "val.bin has 2 tokens" in message(path, val_fraction=0.01)
    assert "val_fraction 1.0" in message(path, val_fraction=1.0)
    assert "tokenizer 'gtp2'" in message(path, tokenizer="gtp2")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cache_dir .*file: cannot be written to: Not a directory"):
        load_corpus("plays", cache_dir=tmp_path / "file", block_size=8)
