"""A byte-level BPE is exact both ways, trains as Hugging Face's does, and refuses files that are no vocabulary."""

import base64
import itertools
import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.bpe import BPE
from jaxgpt.tokenizers.bpe_files import printable
from jaxgpt.tokenizers.tokenizer import load_tokenizer

GPT2 = Path(__file__).parents[2] / "jaxgpt/tokenizers/gpt2"
PLAYS = Path(__file__).parents[2] / "jaxgpt/data/plays"


@pytest.fixture(scope="module")
def hamlet() -> str:
    return (PLAYS / "hamlet.txt").read_text()


@pytest.fixture(scope="module")
def bpe(hamlet: str) -> BPE:
    return BPE.train([hamlet], 700)


@given(text=st.text())
def test_decoding_undoes_encoding(bpe: BPE, text: str):
    assert bpe.decode(bpe.encode(text)) == text


@given(data=st.binary())
def test_every_byte_string_has_ids(bpe: BPE, data: bytes):
    ids = bpe.encode_word(data)
    assert bpe.decode_bytes(ids) == data
    assert bpe.decode(ids) == data.decode("utf-8", "replace")


def test_lone_surrogates_become_replacement_characters(bpe: BPE):
    assert bpe.decode(bpe.encode("a\ud800b \ud83d\ude42")) == "a\ufffdb 🙂"


def hf_merges(texts: list[str], vocab_size: int) -> list[list[str]]:
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    hf = tokenizers.Tokenizer(tokenizers.models.BPE())
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.train_from_iterator(texts, trainer)
    return json.loads(hf.to_str())["model"]["merges"]


def spelled(bpe: BPE) -> list[list[str]]:
    return [[printable(a), printable(b)] for a, b in bpe.merges]


def test_merges_equal_those_of_hugging_face(bpe: BPE, hamlet: str):
    assert spelled(bpe) == hf_merges([hamlet], 699)


@given(texts=st.lists(st.text(alphabet="aab b\n", max_size=60), max_size=4))
def test_ties_and_repeats_merge_as_in_hugging_face(texts: list[str]):
    ours = BPE.train(texts, 280, special_tokens=())
    assert spelled(ours) == hf_merges(texts, 280)
    for text in texts:
        assert ours.decode(ours.encode(text)) == text


def test_ids_are_bytes_then_merges_then_special_tokens(bpe: BPE):
    assert bpe.vocab_size == 700
    assert bpe.vocab[b"!"] == 0 and bpe.vocab[b" "] == 220
    assert [bpe.vocab[a + b] for a, b in bpe.merges] == list(range(256, 699))
    assert bpe.special_tokens == {"<|endoftext|>": 699}


def test_merges_may_come_from_an_iterator_with_an_end(bpe: BPE, monkeypatch: pytest.MonkeyPatch):
    for made in (BPE.from_merges(iter(bpe.merges)), BPE(iter(bpe.merges), bpe.vocab, bpe.special_tokens)):
        assert made.encode("the king") == bpe.encode("the king")
    monkeypatch.setattr(checks, "MOST_READ", 5)
    with pytest.raises(UsageError, match="merges is an iterator of more than 5 items"):
        BPE.from_merges(itertools.repeat((b"a", b"b")))
    with pytest.raises(UsageError, match="merges is an iterator of more than 5 items"):
        BPE(itertools.repeat((b"a", b"b")), bpe.vocab, {})


def test_special_tokens_are_plain_text_unless_asked_for():
    bpe = BPE.train(["some text"], 262, special_tokens=["<|a|>", "<|a|>b"])
    text = "x<|a|>b<|a|>"
    assert not set(bpe.encode(text)) & set(bpe.special_tokens.values())
    special = bpe.encode(text, allow_special=True)
    assert special[1:] == [bpe.special_tokens["<|a|>b"], bpe.special_tokens["<|a|>"]]
    assert bpe.decode(special) == bpe.decode(bpe.encode(text)) == text


def test_training_survives_long_words():
    noise = (
        base64.b64encode(random.Random(0).randbytes(40_000)).decode().translate(str.maketrans("", "", "0123456789+/="))
    )
    bpe = BPE.train([noise, "a" * 40_000], 400)
    assert bpe.vocab_size == 400
    assert bpe.decode(bpe.encode(noise)) == noise


def test_training_stops_when_no_pair_is_left():
    assert BPE.train(["ab"], 1000).vocab_size == 258


@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, "\n" * 100_000 + "x", "é" * 50_000])
def test_long_runs_are_no_burden(text: str):
    bpe = BPE.load(GPT2)
    assert bpe.decode(bpe.encode(text)) == text


def test_explain_ends_in_the_pieces_of_the_word(bpe: BPE):
    steps = bpe.explain(" wherefore")
    assert "".join(steps[0].pieces) == "Ġwherefore" and len(steps[0].pieces) == 10
    assert list(steps[-1].pieces) == [printable(bpe.decode_bytes([i])) for i in bpe.encode(" wherefore")]
    assert [len(step.pieces) for step in steps] == list(range(10, 10 - len(steps), -1))
    assert str(steps[0]).endswith("Ġ w h e r e f o r e")
    with pytest.raises(UsageError, match="2 words"):
        bpe.explain("two words")


@given(text=st.text(alphabet=st.sampled_from("the quick é漢🙂'\n\t 12!")))
def test_saved_and_loaded_is_equal(bpe: BPE, tmp_path_factory: pytest.TempPathFactory, text: str):
    folder = tmp_path_factory.getbasetemp() / "saved with ünicode"
    if not folder.exists():
        bpe.save(folder)
    loaded = BPE.load(folder)
    assert (loaded.merges, loaded.vocab, loaded.special_tokens) == (bpe.merges, bpe.vocab, bpe.special_tokens)
    hf = tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert loaded.encode(text) == bpe.encode(text) == hf.encode(text).ids


def test_ids_outside_the_vocabulary_are_refused(bpe: BPE):
    for i in (700, -1):
        with pytest.raises(UsageError, match=f"token id {i}"):
            bpe.decode([i])


def test_special_tokens_first_is_as_good_an_order(bpe: BPE, tmp_path: Path, hamlet: str):
    shifted = BPE(bpe.merges, {piece: i + 1 for piece, i in bpe.vocab.items()}, {"<|endoftext|>": 0})
    shifted.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(hamlet) == [i + 1 for i in bpe.encode(hamlet)]


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("vocab.json", "{broken", "vocab.json: not JSON"),
        ("vocab.json", "[" * 100_000, "vocab.json: not JSON"),
        ("vocab.json", "[1, 2]", "vocab.json: holds a list; it must be an object"),
        ("vocab.json", '{"a": "1"}', "id of 'a' is '1'"),
        ("vocab.json", '{"a": -1}', "id of 'a' is -1"),
        ("vocab.json", '{"a": 1000000000}', "id of 'a' is 1000000000"),
        ("vocab.json", '{"a": 1, "b": 1}', "id 1 is given twice"),
        ("vocab.json", '{"a": 1}', "lacks byte"),
        ("vocab.json", '{"a": %s}' % ("9" * 5000), "vocab.json: not JSON"),
        ("vocab.json", r'{"\ud83d\ude42": 1, "\uDE42\ud83d": 2}', "vocab.json: '\"\\ude42\\ud83d\"' has a lone surr"),
        ("merges.txt", "#version: 0.2\nt h e\n", "merges.txt: merge 2, 't h e'"),
        ("merges.txt", "#version: 0.2\nt qq\n", "merges.txt: merge 2, 't' 'qq': 'qq' is not in the vocabulary"),
        ("merges.txt", "#version: 0.2\nt h\nt h\n", "merges.txt: merge 3, 't' 'h', stands there twice"),
        ("merges.txt", "\udcff", "merges.txt: not UTF-8 at byte 0"),
    ],
)
def test_broken_files_are_named(bpe: BPE, tmp_path: Path, file: str, contents: str, message: str):
    bpe.save(tmp_path)
    (tmp_path / file).write_bytes(contents.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        BPE.load(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_a_vocabulary_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="no tokenizer here"):
        BPE.load(tmp_path)
    with pytest.raises(UsageError, match="vocab_size 200"):
        BPE.train(["x"], 200)
