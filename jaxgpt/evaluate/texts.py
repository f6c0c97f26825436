"""Texts come in, from files or by name; loss, perplexity and bits per byte go out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from jaxgpt import checks
from jaxgpt.data.batches import Batch
from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.documents import DocumentFiles
from jaxgpt.data.opening import NAMES, open_source
from jaxgpt.data.sources import VAL_FRACTION
from jaxgpt.data.tokens.shards import Tokens, open_files
from jaxgpt.data.tokens.token_folders import are_tokens, refuse_other_tokenizer, token_files
from jaxgpt.errors import UsageError
from jaxgpt.evaluate.scoring import Row, Scored, Scorer, perplexity, windows
from jaxgpt.notes import note
from jaxgpt.tokenizers import HFTokenizer, Tokenizer


@dataclass(frozen=True)
class Document:
    """A text in tokens.

    Attributes:
        ids: (N,) its tokens, with those that begin a text.
        first: the place of the first that is scored: before it stands nothing but what begins every text, or, where
            there is nothing of that, the one token that can't be predicted.
        words: how many the text has between white space; None where the text is not at hand.
    """

    ids: np.ndarray | Tokens
    first: int
    words: int | None


@dataclass(frozen=True)
class TextScore:
    """The figures of a model that predicts texts.

    Attributes:
        nats: the sum of -log p of all tokens that were scored.
        tokens: how many those are.
        bytes: how many bytes of UTF-8 they stand for; a special token stands for none.
        words: words of the texts, between white space; None where that is not known.
        texts: how many there are.
        unscored: how many of them have no token to score.
    """

    nats: float
    tokens: int
    bytes: int
    words: int | None
    texts: int
    unscored: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats a token."""
        return self.nats / self.tokens

    def metrics(self) -> dict[str, float | int]:
        """Return the figures by their names.

        bits_per_byte compares models of different tokenizers, the others, but for word_perplexity, do not.
        """
        per_word = None if not self.words else self.nats / self.words
        found = {
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "bits_per_byte": self.nats / math.log(2) / self.bytes if self.bytes else math.nan,
            "tokens_per_byte": self.tokens / self.bytes if self.bytes else math.nan,
            **({} if per_word is None else {"word_perplexity": perplexity(per_word)}),
            "tokens": self.tokens,
            "bytes": self.bytes,
            "texts": self.texts,
        }
        return {**found, **({"texts_without_a_token_to_score": self.unscored} if self.unscored else {})}


def measure_texts(
    scorer: Scorer, documents: Iterable[Document], *, context: int | None = None, stride: int | None = None
) -> TextScore:
    """Score texts by `windows`, none of which reaches from one text into another.

    Args:
        scorer: the model.
        documents: the texts.
        context: tokens that are read at once; None for the model's context.
        stride: tokens by which the next window begins later; None for as many as the context has.

    Raises:
        UsageError: the context is not the model's or shorter, the stride is no shorter step, or nothing can be scored.
    """
    most = scorer.config.n_positions
    context = most if context is None else checks.whole("block_size", context, 1)
    if context > most:
        raise UsageError(f"block_size {context}: the model's context is {most}; it must be from 1 to that")
    stride = None if stride in (None, context) else checks.whole("stride", stride, 1)
    if stride is not None and stride > context:
        raise UsageError(f"stride {stride}: it must be from 1 to {context}, the tokens that are read at once")
    documents = checks.records("documents", documents, Document)
    rows = chain.from_iterable(windows(one.ids, context=context, stride=stride, first=one.first) for one in documents)
    total = sum(max(len(one.ids) - one.first, 0) for one in documents)
    nats, tokens, size = add_up(scorer.tokenizer, scorer.score(rows, total=total))
    if not tokens:
        raise UsageError(f"none of the {len(documents)} texts has a token to score: the first of each is only context")
    words = sum(one.words or 0 for one in documents)
    unscored = sum(one.first >= len(one.ids) for one in documents)
    return TextScore(nats, tokens, size, words or None, len(documents), unscored)


def measure_windows(scorer: Scorer, batches: Iterable[Batch]) -> TextScore:
    """Score the rows of batches, each of which counts as its weights say, as pretraining is evaluated on them."""
    rows, weights = [], []
    for batch in checks.records("batches", batches, Batch, least=1):
        rows += [Row(ids) for ids in np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)]
        weights += batch.weights[:, 0].tolist()
    scored = scorer.score(rows, total=sum(len(row.ids) - 1 for row in rows))
    sums = np.array([add_up(scorer.tokenizer, [row]) for row in scored], np.float64)
    nats, tokens, size = np.array(weights) @ sums
    return TextScore(float(nats), round(tokens), round(size), None, len(rows))


def add_up(tokenizer: Tokenizer, rows: Iterable[Scored]) -> tuple[float, int, int]:
    """Return the sum of -log p over all tokens that are scored, how many there are, and of how many bytes."""
    sizes, nats, tokens, size = byte_sizes(tokenizer), 0.0, 0, 0
    for row in rows:
        nats -= float(row.log_probs.sum(dtype=np.float64))
        tokens += len(row.ids)
        size += int(sizes[row.ids].sum())
    return nats, tokens, size


def measure_batches(loss: float, batches: Iterable[Batch], tokenizer: Tokenizer) -> TextScore:
    """Return the figures of a mean loss over the weighted targets of batches, as objectives have it."""
    sizes = byte_sizes(tokenizer)
    tokens = total = 0.0
    for batch in batches:
        weights = np.asarray(batch.weights, np.float64)
        tokens += weights.sum()
        total += (sizes[np.asarray(batch.targets)] * weights).sum()
    return TextScore(loss * tokens, round(tokens), round(total), None, 1)


@cache
def byte_sizes(tokenizer: Tokenizer) -> np.ndarray:
    """Return (V,) bytes of text that each id stands for: none for special tokens, nor where that can't be told."""
    sizes = np.zeros(tokenizer.vocab_size, np.int64)
    if isinstance(tokenizer, HFTokenizer):
        note("no bits_per_byte: a tokenizer of another kind than GPT-2's does not tell which bytes a token stands for")
        return sizes
    for token in range(tokenizer.vocab_size):
        with contextlib.suppress(UsageError):  # a hole in the vocabulary
            sizes[token] = len(tokenizer.decode_bytes([token]))
    for token in tokenizer.special_tokens.values():
        sizes[token] = 0
    return sizes


def read_documents(
    dataset: str,
    tokenizer: Tokenizer,
    *,
    text_column: str | None = None,
    prefix: bool = False,
    cache_dir: str | None = None,
) -> Iterator[Document]:
    """Yield the texts of a data set, one after another.

    Args:
        dataset: what training takes (see `jaxgpt.data.opening.open_source`): of a folder or data set of the hub with a
            split to validate on that split, else all; each row of records or file is a text. Or tokens, of a folder
            those to validate on, else all: one text. Or a corpus by name, of which the part to test on, or else that
            for validation, is one text.
        tokenizer: the model's.
        text_column: the column of records that holds the text; None is "text".
        prefix: read the end-of-text token before each text, so that its first token is scored, too.
        cache_dir: of corpora; None for the default.

    Raises:
        UsageError: naming file and line of what is wrong.
    """
    path = Path(dataset)
    start = _start(tokenizer, prefix)
    if are_tokens(path) or (path / "val.bin").exists():
        if text_column is not None:
            raise UsageError(f"text_column {text_column!r}: {dataset} has no columns")
        train, val, _ = token_files(path)
        yield _of_tokens(open_files(val or train, tokenizer.vocab_size), tokenizer)
        return
    cache = None if cache_dir is None else Path(cache_dir)
    files = open_source(dataset, text_column=text_column, cache_dir=cache, test=True)
    if not isinstance(files, DocumentFiles):
        files = DocumentFiles(dataset, files.paths, VAL_FRACTION, rows={})
    if dataset in NAMES and not files.held_out:  # of which a share is held out
        corpus = load_corpus(dataset, tokenizer, block_size=1, text_column=text_column, cache_dir=cache)
        assert isinstance(corpus.val, Tokens)
        yield _of_tokens(corpus.val, tokenizer)
        return
    for place in files.held_out or files.paths:
        for pieces in files.read([place]):
            text = "".join(pieces)
            try:
                ids = np.array([*start, *tokenizer.encode_part(text)], np.int32)
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
            yield Document(ids, max(len(start), 1), len(text.split()))
    for text in files.notes:
        note(text)


def _start(tokenizer: Tokenizer, prefix: bool) -> tuple[int, ...]:
    """Return what is read before each text and not scored."""
    if tokenizer.ends.begin or not prefix:
        return tokenizer.ends.begin
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--prefix: this {tokenizer.name} tokenizer has no end-of-text token to begin texts with")
    return (tokenizer.eos_token_id,)


def _of_tokens(ids: Tokens, tokenizer: Tokenizer) -> Document:
    refuse_other_tokenizer(ids, tokenizer, "another one than the model's")
    return Document(ids, 1, None)
