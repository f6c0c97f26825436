"""Several data sets are one corpus: in one tokenizer's ids, with the shares that are asked for."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.data.corpus import Corpus, load_corpus
from jaxgpt.data.encoding import making
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.data.tokens.mixture import Mixture
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("abcd " * 40)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.txt").write_text("bad cab " * 20)
    for name, alphabet in (("tokens", " abcd"), ("others", "wxyz")):
        CharTokenizer(alphabet).save(tmp_path / name)
        for split in ("train", "val"):
            np.zeros(50, np.uint16).tofile(tmp_path / name / f"{split}.bin")
    return tmp_path


def load(files: Path, *names: str, **given) -> Corpus:
    return load_corpus([files / name for name in names], cache_dir=files / "cache", block_size=4, **given)


def test_texts_and_tokens_are_mixed(files: Path):
    corpus = load(files, "a.txt", "b", "tokens", dataset_weights=[2, 1, 1])
    assert isinstance(corpus.train, Mixture) and isinstance(corpus.val, Mixture)
    assert corpus.train.names == ("a", "b", "tokens") and corpus.train.weights == corpus.val.weights == (
        0.5,
        0.25,
        0.25,
    )
    assert corpus.tokenizer.fingerprint == CharTokenizer(" abcd").fingerprint
    alone = load_corpus(files / "b", corpus.tokenizer, cache_dir=files / "cache", block_size=4)
    assert corpus.train.sources[1].fingerprint == alone.train.fingerprint
    assert corpus.val.sources[1].fingerprint == alone.val.fingerprint
    again = load(files, "a.txt", "b", "tokens", dataset_weights=[1, 1, 1])
    assert again.train.fingerprint == corpus.train.fingerprint != load(files, "b", "a.txt").train.fingerprint


def test_shares_are_those_of_the_tokens_to_train_on(files: Path):
    corpus = load(files, "a.txt", "b")
    assert isinstance(corpus.train, Mixture) and isinstance(corpus.val, Mixture)
    sizes = [len(source) for source in corpus.train.sources]
    np.testing.assert_allclose(corpus.train.weights, np.array(sizes) / sum(sizes))
    assert corpus.val.weights == corpus.train.weights and len(corpus.train) == sum(sizes)


def test_one_is_no_mixture(files: Path):
    assert (
        load(files, "a.txt").train.fingerprint
        == load_corpus(files / "a.txt", cache_dir=files / "cache", block_size=4).train.fingerprint
    )


def test_what_to_validate_on_may_be_another(files: Path):
    (files / "v.txt").write_text("dada " * 9)
    corpus = load(files, "a.txt", "b", val_dataset=files / "v.txt")
    assert not isinstance(corpus.val, Mixture)
    assert corpus.tokenizer.decode(corpus.val[:]) == "dada " * 9


def test_names_differ(files: Path):
    (files / "c").mkdir()
    (files / "c" / "a.txt").write_text("dab " * 30)
    corpus = load(files, "a.txt", "c/a.txt", "b")
    assert isinstance(corpus.train, Mixture) and corpus.train.names == ("a", "a-2", "b")


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (("a.txt", "b"), [1], "dataset_weights: 1 for 2 datasets; there must be one for each of several"),
        (("a.txt", "b"), [1, 2, 3], "dataset_weights: more than 2 for 2 datasets; there must be one for each"),
        (("a.txt", "b"), range(1, 10**12), "dataset_weights: more than 2 for 2 datasets"),
        (("a.txt", "b"), [1, 0], "dataset_weights is 0.0; it must be a positive number"),
        (("a.txt", "b"), [1, -0.5], "dataset_weights is -0.5; it must be a positive number"),
        (("a.txt", "b"), [float("nan"), 1], "dataset_weights is nan; it must be a positive number"),
        (("a.txt", "b"), 0.5, "dataset_weights is 0.5; it must be a positive number for each dataset"),
        (("a.txt",), [1], "dataset_weights [1]: only with several datasets"),
        (("tokens", "others"), None, "others: its tokenizer is 'char', another one than 'char' of"),
        (("a.txt", "missing"), None, "missing': no such file or folder"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_can_not_be_mixed_is_one_line(files: Path, names: tuple[str, ...], weights, message: str):
    with pytest.raises(UsageError) as caught:
        load(files, *names, dataset_weights=weights)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def splits(files: Path) -> Path:
    (files / "s").mkdir()
    for name in ("train", "val"):
        (files / "s" / f"{name}.txt").write_text(f"{name}, {name}. " * 9)
    (files / "link.txt").symlink_to(files / "s" / "val.txt")
    return files


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("s", "s/val.txt"), "dataset s/val.txt is trained on, but dataset s validates on it"),
        (("link.txt", "a.txt", "s"), "dataset link.txt is trained on, but dataset s validates on it"),
        (("s", "s/train.txt"), "dataset s has s/train.txt, which is trained on, but dataset s/train.txt validates on "),
        (("b", "b/b.txt"), "dataset b has b/b.txt, which is trained on, but dataset b/b.txt validates on it"),
        (("tokens/val.bin", "tokens"), "dataset tokens/val.bin is trained on, but dataset tokens validates on it"),
        (("plays", PLAYS_FOLDER / "hamlet.txt"), "hamlet.txt, which is trained on, but dataset"),
    ],
)
def test_none_trains_on_what_another_validates_on(
    splits: Path, names: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(splits)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_corpus(names, cache_dir="cache", block_size=4)


def test_one_may_be_given_twice(splits: Path):
    once = load(splits, "s")
    for twice in (load(splits, "s", "s"), load(splits, "s", "b/../s")):
        assert isinstance(twice.train, Mixture) and isinstance(twice.val, Mixture)
        assert {source.fingerprint for source in twice.train.sources} == {once.train.fingerprint}
        assert {source.fingerprint for source in twice.val.sources} == {once.val.fingerprint}
    assert isinstance(load(splits, "s", "s/val.txt", val_dataset=splits / "a.txt").train, Mixture)


@pytest.mark.parametrize("val", [None, "v.txt"])
def test_characters_are_those_of_all(files: Path, val: str | None, monkeypatch: pytest.MonkeyPatch):
    (files / "c.txt").write_text(text := "abcx\n" * 30)
    (files / "v.txt").write_text("yes yes")
    named: dict[str, Any] = {} if val is None else {"val_dataset": files / val}
    corpus = load(files, "a.txt", "c.txt", **named)
    assert corpus.tokenizer.fingerprint == CharTokenizer(" abcdx\n" + ("" if val is None else "yes")).fingerprint
    assert isinstance(corpus.train, Mixture)
    assert text.startswith(corpus.tokenizer.decode(corpus.train.sources[1][:]))
    monkeypatch.setattr("jaxgpt.data.corpus.make_tokenizer", None)  # it is in the cache
    assert load(files, "a.txt", "c.txt", **named).train.fingerprint == corpus.train.fingerprint


def test_a_bpe_is_learnt_from_all(files: Path, monkeypatch: pytest.MonkeyPatch):
    (files / "c.txt").write_text("xyxy zz " * 30)
    how: dict[str, Any] = {"tokenizer": "bpe", "bpe_vocab_size": 262}
    monkeypatch.setattr(making, "_LEARN_FROM", 200)
    texts = ["abcd " * 36, "xyxy zz " * 27]  # to train on; of each, what is read in one go
    learnt = BPETokenizer.train(texts, 262)
    found = load(files, "a.txt", "c.txt", **how).tokenizer
    assert found.fingerprint == learnt.fingerprint
    assert found.fingerprint not in [
        load_corpus(files / name, cache_dir=files / "cache", block_size=4, **how).tokenizer.fingerprint
        for name in ("a.txt", "c.txt")
    ]
