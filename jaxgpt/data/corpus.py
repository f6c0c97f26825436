"""A corpus: text turned into token files once, and opened from the cache from then on.

What is in the cache is found by a hash of the text and of the tokenizer, so a changed text is encoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import lock_descriptor

from jaxgpt import checks
from jaxgpt.data.documents import suffix_of
from jaxgpt.data.encoding import cut_between_words, encode_documents
from jaxgpt.data.hub import columns_and_size
from jaxgpt.data.opening import default_cache_dir, open_source
from jaxgpt.data.sources import Source, Split
from jaxgpt.data.special_texts import SpecialTexts
from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.data.tokens.token_files import TokenFile, write_token_file
from jaxgpt.data.tokens.token_folders import are_tokens, open_tokens
from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import regular
from jaxgpt.progress import Bar, bar
from jaxgpt.signals import tidied
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.roles import END_OF_TEXT
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

_FORMAT = 1  # part of the cache's key, to be raised when equal text gets other ids
_SPLITS: tuple[Split, Split] = ("train", "val")
_LEARN_FROM = 1 << 28  # characters
_PARALLEL_FROM = 1 << 26  # bytes; below, starting processes takes longer than the work
_UNFINISHED = ".unfinished-"
_NOTES = "notes.txt"
FRACTION = "above 0 and below 1"
MOST_BPE_IDS = 1 << 24
MOST_WORKERS = 1 << 10


@dataclass(frozen=True)
class Corpus:
    """Ids for training and validation, each in one file or in many, and the tokenizer that made them.

    Attributes:
        name: the dataset as it was asked for.
        train: ids to train on.
        val: ids to evaluate on.
        tokenizer: made the ids.
        notes: what was left out of the text when it was read, for people; kept in the cache with the ids.
    """

    name: str
    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Encoding:
    """The way from a text to tokens."""

    bpe_vocab_size: int
    allow_special: bool
    workers: int | None
    progress: bool


def load_corpus(
    dataset: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    *,
    val_dataset: str | Path | None = None,
    cache_dir: str | Path | None = None,
    block_size: int,
    val_fraction: float | None = None,
    bpe_vocab_size: int = 4096,
    text_column: str | None = None,
    document_separator: str | None = None,
    allow_special: bool = False,
    workers: int | None = None,
    progress: bool | None = None,
) -> Corpus:
    """Return a corpus as token files, encoding it first if that was not done before.

    The first characters are for training and the last for validation, at whatever character the cut falls, as in
    nanoGPT; where documents are rows of records, or divided by `document_separator`, every so-many-th is for
    validation; and where a folder's files are named train and val, these are the splits. Several documents are
    separated by the end-of-text token, by a line end where the tokenizer has none.

    Args:
        dataset: "plays" (bundled), "shakespeare", "wikitext2", "wikitext103", "openwebtext" or "fineweb" (downloaded),
            a text file, a file of records (.parquet, .jsonl, .json, .csv, .tsv; but for parquet also .gz) with a text
            a row, a folder of these, a data set of the hub, `hub:OWNER/NAME[/CONFIG][:SPLIT]`, or tokens, ours or
            nanoGPT's or llm.c's, which are used as they are: a folder with `train.bin` and `val.bin`, or of many .bin
            files whose names say train and val, as `fineweb_train_000001.bin`; or a .bin file, or several whose names
            say nothing, whose last ids are for validation.
        tokenizer: "char", "bpe" (both made from the text), what `load_tokenizer` takes, or a tokenizer. None is the
            folder's own for token files (GPT-2's if it has none; nanoGPT's `meta.pkl` is one), "gpt2" for downloads
            from the hub, else "char".
        val_dataset: likewise, to validate on: its own part for that, or else all of it; tokens where `dataset` is.
        cache_dir: default_cache_dir() by default.
        block_size: T; both splits must be longer.
        val_fraction: for validation; None is 0.1, and 0.0005 of openwebtext and fineweb.
        bpe_vocab_size: of the vocabulary that "bpe" learns, from at most the first 268 million characters to train on.
        text_column: of records, the column with the text; None is "text".
        document_separator: a text that separates documents in text files, such as "<|endoftext|>".
        allow_special: read a special token's text as that token.
        workers: processes that encode; None is one per core for large texts and none for small ones.
        progress: show bars; None is where stderr is a terminal.

    Raises:
        UsageError: naming the dataset, file or argument, and what would be valid.
    """
    place = checks.path("dataset", dataset, "a name, or the path of a file or folder")
    if val_fraction is not None and not 0 < checks.real("val_fraction", val_fraction, FRACTION) < 1:
        raise UsageError(f"val_fraction {val_fraction}: must be {FRACTION}")
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        wanted = "'char', 'bpe', 'gpt2', the path of a folder, a tokenizer, or None"
        given = checks.path("tokenizer", tokenizer, wanted)
        tokenizer = tokenizer if isinstance(tokenizer, str) else given
    if val_dataset is not None:
        if val_fraction is not None:
            raise UsageError(f"val_fraction {val_fraction}: not with val_dataset, which is what to validate on")
        val_place = checks.path("val_dataset", val_dataset, "a name, or the path of a file or folder")
        val_dataset = val_dataset if isinstance(val_dataset, str) else val_place
    block_size = checks.whole("block_size", block_size, 1)
    bpe_vocab_size = checks.whole("bpe_vocab_size", bpe_vocab_size, 257, MOST_BPE_IDS)
    for name, value in (("text_column", text_column), ("document_separator", document_separator)):
        if value is not None and not checks.text(name, value):
            raise UsageError(f"{name} '': must be a text, or None")
    allow_special = checks.flag("allow_special", allow_special)
    workers = None if workers is None else checks.whole("workers", workers, 0, MOST_WORKERS)
    cache = default_cache_dir() if cache_dir is None else checks.path("cache_dir", cache_dir)
    bars = sys.stderr.isatty() if progress is None else checks.flag("progress", progress)
    if are_tokens(place):
        _refuse(place, "holds tokens", text_column, document_separator)
        corpus = Corpus(str(place), *open_tokens(place, tokenizer, val_fraction, val_dataset))
    else:
        source = open_source(
            dataset if isinstance(dataset, str) else place,
            val_fraction,
            val_dataset=val_dataset,
            text_column=text_column,
            separator=document_separator,
            cache_dir=cache,
        )
        if tokenizer is None:
            first = source.paths[0]
            tokenizer = "gpt2" if isinstance(first, str) or suffix_of(first) == ".parquet" else "char"
        encoding = _Encoding(bpe_vocab_size, allow_special, workers, bars)
        corpus = _open_cached(source, tokenizer, cache, encoding)
    for ids in (corpus.train, corpus.val):
        if len(ids) <= block_size:
            raise UsageError(
                f"dataset {corpus.name}: {ids.name} has {len(ids)} tokens; block_size {block_size} needs at "
                f"least {block_size + 1}"
            )
    return corpus


def _refuse(dataset: str | Path, why: str, text_column: str | None, document_separator: str | None) -> None:
    """Refuse what says how files are read, where none are."""
    for name, value in (("text_column", text_column), ("document_separator", document_separator)):
        if value is not None:
            raise UsageError(f"{name} {value!r}: of no use, as {dataset} {why}")


def _open_cached(
    source: Source,
    tokenizer: str | Path | Tokenizer,
    cache: Path,
    how: _Encoding,
) -> Corpus:
    """Return the corpus from the cache, where it is put first if need be, all of it or nothing."""
    if isinstance(tokenizer, str | Path) and tokenizer not in ("char", "bpe"):
        tokenizer = load_tokenizer(tokenizer)
    kind = tokenizer if isinstance(tokenizer, str | Path) else tokenizer.fingerprint
    identity: list[Any] = [_FORMAT, source.fingerprint(), str(kind), how.bpe_vocab_size if kind == "bpe" else None]
    identity += ["special"] if how.allow_special else []
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    folder = cache / "corpora" / f"{Path(source.name).name.replace(':', '-')}-{key[:16]}"
    opening = list(source.notes)  # those of reading come later, or from the cache
    if not folder.exists():
        with _unfinished(folder.parent) as place:
            try:
                _encode_into(place / "new", source, tokenizer, how)
                (place / "new" / _NOTES).write_text(
                    "\n".join(source.notes[len(opening) :]), encoding="utf-8", errors="replace"
                )
                (place / "new").rename(folder)
            except OSError as error:
                if not folder.exists():  # else another process was first, with the same
                    raise RunError(f"{folder}: cannot be written: {error.strerror}") from None
    train, val = (TokenFile(folder / f"{split}.bin") for split in _SPLITS)
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(folder)
    kept = folder / _NOTES  # not in what earlier versions left
    notes = regular(kept).read_text(encoding="utf-8", errors="replace") if kept.exists() else ""
    return Corpus(source.name, train, val, tokenizer, (*opening, *notes.splitlines()))


@contextlib.contextmanager
def _unfinished(corpora: Path) -> Iterator[Path]:
    """Make a hidden folder that is gone afterwards, and remove those of processes that were killed.

    Each has a file beside it that its process has locked since before it was there, and a lock ends with the process,
    however that ends.
    """
    with contextlib.ExitStack() as stack:
        try:
            corpora.mkdir(parents=True, exist_ok=True)
            for left in corpora.glob(f"{_UNFINISHED}*/"):
                with _lock_of(left).open("a") as lock, contextlib.suppress(OSError):
                    if lock_descriptor(lock.fileno(), blocking=False):
                        _remove(left)
            place = corpora / f"{_UNFINISHED}{secrets.token_hex(8)}"
            lock = stack.enter_context(_lock_of(place).open("x"))
            stack.enter_context(tidied(partial(_remove, place)))
            with contextlib.suppress(OSError):  # some network file systems have no locks
                lock_descriptor(lock.fileno(), blocking=False)
            place.mkdir()
        except OSError as error:
            why = f"cannot be written to: {error.strerror}; choose another"
            raise UsageError(f"cache_dir {corpora.parent}: {why}") from None
        yield place


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # Windows deletes no open file
        _lock_of(folder).unlink()


def _encode_into(
    folder: Path,
    source: Source,
    tokenizer: str | Path | Tokenizer,
    how: _Encoding,
) -> None:
    if tokenizer == "char":
        tokenizer = CharTokenizer("".join(_alphabet(source)))
    elif tokenizer == "bpe":
        tokenizer = BPETokenizer.train(_sample(source), how.bpe_vocab_size, progress=how.progress)
    assert not isinstance(tokenizer, str | Path)
    tokenizer.save(folder)
    workers = how.workers
    if workers is None:
        small = sum(map(_size, source.paths)) < _PARALLEL_FROM
        workers = 0 if small else os.cpu_count() or 1
    special = {END_OF_TEXT, *tokenizer.special_tokens}
    seen = SpecialTexts(special.difference(tokenizer.special_tokens) if how.allow_special else special)
    for split in _SPLITS:
        documents = map(seen.watch, source.documents(split))
        chunks = encode_documents(
            documents, tokenizer, folder=folder, processes=workers, allow_special=how.allow_special
        )  # fmt: skip
        with bar(f"{source.name}: {split}", unit="tokens", show=how.progress) as shown:
            write_token_file(folder / f"{split}.bin", _counted(chunks, shown), tokenizer)
    source.notes += seen.notes(source.name)


def _size(path: Path | str) -> int:
    """Return bytes of what is read."""
    return columns_and_size(path)[1] if isinstance(path, str) else path.stat().st_size


def _alphabet(source: Source) -> set[str]:
    characters: set[str] = set()
    for split in _SPLITS:
        for number, document in enumerate(source.documents(split)):
            characters.update("\n" if number else "")  # separates documents
            for piece in document:
                characters.update(piece)
    return characters


def _sample(source: Source) -> Iterator[str]:
    size = 0
    for document in source.documents("train"):
        for text in cut_between_words(document):
            yield text
            size += len(text)
            if size > _LEARN_FROM:
                return


def _counted(chunks: Iterator[np.ndarray], shown: Bar) -> Iterator[np.ndarray]:
    for chunk in chunks:
        shown.update(len(chunk))
        yield chunk
