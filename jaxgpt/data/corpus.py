"""A corpus: text turned into token files once, and opened from the cache from then on.

What is in the cache is found by a hash of the text and of the tokenizer, so a changed text is encoded anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import checks
from jaxgpt.data.documents import suffix_of
from jaxgpt.data.encoding.making import Encoding, encode_corpus, make_tokenizer
from jaxgpt.data.encoding.unfinished import unfinished
from jaxgpt.data.folders import refuse_mixed
from jaxgpt.data.opening import default_cache_dir, find_parts, open_source
from jaxgpt.data.sources import SPLITS, Source
from jaxgpt.data.tokens.mixing import check_weights, open_mixture
from jaxgpt.data.tokens.mixture import Mixture
from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.data.tokens.token_folders import MADE, are_tokens, open_tokens, token_files
from jaxgpt.errors import UsageError
from jaxgpt.files import regular, sync
from jaxgpt.tokenizers.tokenizer import Tokenizer, load_tokenizer

_FORMAT = 1  # part of the cache's key, to be raised when equal text gets other ids
_NOTES = "notes.txt"
DATASET = "a name, or the path of a file or folder"
FRACTION = "above 0 and below 1"
MOST_BPE_IDS = 1 << 24
MOST_WORKERS = 1 << 10


@dataclass(frozen=True)
class Corpus:
    """Ids for training and validation, each in one file, in many or in a mixture, and the tokenizer that made them.

    Attributes:
        name: the dataset as it was asked for.
        train: ids to train on.
        val: ids to evaluate on.
        tokenizer: made the ids.
        notes: what was left out of the text when it was read, for people; kept in the cache with the ids.
    """

    name: str
    train: Tokens | Mixture
    val: Tokens | Mixture
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def load_corpus(
    dataset: str | Path | Sequence[str | Path],
    tokenizer: str | Path | Tokenizer | None = None,
    *,
    dataset_weights: Sequence[float | int] | None = None,
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
            say nothing, whose last ids are for validation. Several of these are mixed, see `open_mixture`; what says
            how texts are read is for those that are texts.
        tokenizer: "char", "bpe" (both made from the text, of several data sets from that of all), what
            `load_tokenizer` takes, or a tokenizer. None is the folder's own for token files (GPT-2's if it has none;
            nanoGPT's `meta.pkl` is one), "gpt2" for downloads from the hub, else "char".
        dataset_weights: the shares of rows of several data sets, of any sum; None for those of their tokens.
        val_dataset: as one `dataset`, to validate on: its own part for that, or else all of it; tokens where that is.
        cache_dir: default_cache_dir() by default.
        block_size: T; both splits must be longer.
        val_fraction: for validation; None is 0.1, and 0.0005 of openwebtext and fineweb.
        bpe_vocab_size: of the vocabulary that "bpe" learns, from at most the first 268 million characters to train on,
            of several data sets from an equal share of each.
        text_column: of records, the column with the text; None is "text".
        document_separator: a text that separates documents in text files, such as "<|endoftext|>".
        allow_special: read a special token's text as that token.
        workers: processes that encode; None is one per core for large texts and none for small ones.
        progress: show bars; None is where stderr is a terminal.

    Raises:
        UsageError: naming the dataset, file or argument, and what would be valid.
    """
    several: Any = dataset if isinstance(dataset, Sequence) and checks.several(dataset) else [dataset]
    places = [checks.path("dataset", one, DATASET) for one in several]  # the first that is none ends a long range
    if not places:
        raise checks.refusal("dataset", dataset, DATASET)
    if val_fraction is not None and not 0 < checks.real("val_fraction", val_fraction, FRACTION) < 1:
        raise UsageError(f"val_fraction {val_fraction}: must be {FRACTION}")
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        wanted = "'char', 'bpe', 'gpt2', the path of a folder, a tokenizer, or None"
        given = checks.path("tokenizer", tokenizer, wanted)
        tokenizer = tokenizer if isinstance(tokenizer, str) else given
    if val_dataset is not None:
        if val_fraction is not None:
            raise UsageError(f"val_fraction {val_fraction}: not with val_dataset, which is what to validate on")
        val_place = checks.path("val_dataset", val_dataset, DATASET)
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
    encoding = Encoding(bpe_vocab_size, allow_special, workers, bars)
    reading: dict[str, Any] = {
        "val_dataset": val_dataset, "text_column": text_column, "separator": document_separator, "cache_dir": cache,
    }  # fmt: skip
    if len(several) > 1:
        shares = None if dataset_weights is None else check_weights(dataset_weights, len(several))
        if val_dataset is None:
            refuse_mixed([(one, *_splits(one, cache)) for one in several])
        how: dict[str, Any] = {
            "val_dataset": val_dataset, "cache_dir": cache_dir, "block_size": block_size, "val_fraction": val_fraction,
            "bpe_vocab_size": bpe_vocab_size, "allow_special": allow_special, "workers": workers, "progress": progress,
        }  # fmt: skip
        of_texts: dict[str, Any] = {"text_column": text_column, "document_separator": document_separator}

        def load(one: str | Path, tokenizer: str | Path | Tokenizer | None) -> Corpus:
            return load_corpus(one, tokenizer, **how, **({} if are_tokens(Path(one)) else of_texts))

        def make(datasets: Sequence[str | Path], kind: str | None) -> str | Tokenizer:
            sources = [open_source(one, val_fraction, **reading) for one in datasets]
            kind = kind or _kind(sources[0])
            return _tokenizer_of(sources, kind, cache, encoding) if kind in MADE else kind

        return Corpus(*open_mixture(list(several), shares, tokenizer, load, make, shared_val=val_dataset is not None))
    if dataset_weights is not None:
        check_weights(dataset_weights, 1)
        raise UsageError(f"dataset_weights {checks.shown(dataset_weights)}: only with several datasets")
    (dataset,), (place,) = several, places
    if are_tokens(place):
        _refuse(place, "holds tokens", text_column, document_separator)
        corpus = Corpus(str(place), *open_tokens(place, tokenizer, val_fraction, val_dataset))
    else:
        source = open_source(dataset if isinstance(dataset, str) else place, val_fraction, **reading)
        corpus = _open_cached(source, _kind(source) if tokenizer is None else tokenizer, cache, encoding)
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


def _splits(dataset: str | Path, cache: Path) -> tuple[Sequence[Path | str], Sequence[Path | str]]:
    """Return a data set's files, or parts of the hub, to train on, and those to validate on, if anything says which."""
    tokens = are_tokens(Path(dataset))
    train, val, _ = token_files(Path(dataset)) if tokens else find_parts("dataset", dataset, cache)
    return train, val


def _kind(source: Source) -> str:
    """Return the tokenizer of a source for which none is asked for."""
    first = source.paths[0]
    return "gpt2" if isinstance(first, str) or suffix_of(first) == ".parquet" else "char"


def _tokenizer_of(sources: Sequence[Source], kind: str, cache: Path, how: Encoding) -> Tokenizer:
    """Return the tokenizer that is made from several sources, from the cache, where it is put first if need be."""
    identity = [_FORMAT, [source.fingerprint() for source in sources], kind]
    key = _key([*identity, how.bpe_vocab_size if kind == "bpe" else None])
    folder = cache / "tokenizers" / f"{kind}-{key}"
    if not folder.exists():
        with unfinished(folder, key) as place:
            if not folder.exists():
                make_tokenizer(sources, kind, how).save(made := place / "new")
                sync(made)
                made.rename(folder)
    return load_tokenizer(folder)


def _key(identity: list[Any]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _open_cached(source: Source, tokenizer: str | Path | Tokenizer, cache: Path, how: Encoding) -> Corpus:
    """Return the corpus from the cache, where it is put first if need be, all of it or nothing."""
    if isinstance(tokenizer, str | Path) and tokenizer not in MADE:
        tokenizer = load_tokenizer(tokenizer)
    kind = tokenizer if isinstance(tokenizer, str | Path) else tokenizer.fingerprint
    identity: list[Any] = [_FORMAT, source.fingerprint(), str(kind), how.bpe_vocab_size if kind == "bpe" else None]
    identity += ["special"] if how.allow_special else []
    key = _key(identity)
    folder = cache / "corpora" / f"{Path(source.name).name.replace(':', '-')}-{key}"
    opening = list(source.notes)  # those of reading come later, or from the cache
    if not folder.exists():
        with unfinished(folder, key) as place:
            if not folder.exists():  # another process may have been first
                made = encode_corpus(place, source, tokenizer, how)
                notes = "\n".join(source.notes[len(opening) :])
                (made / _NOTES).write_text(notes, encoding="utf-8", errors="replace")
                sync(made)
                made.rename(folder)
    train, val = (TokenFile(folder / f"{split}.bin") for split in SPLITS)
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(folder)
    kept = folder / _NOTES  # not in what earlier versions left
    notes = regular(kept).read_text(encoding="utf-8", errors="replace") if kept.exists() else ""
    return Corpus(source.name, train, val, tokenizer, (*opening, *notes.splitlines()))
