"""The making of a corpus: its tokenizer, where that is made from the text, then the ids of all of the text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jaxgpt.data.encoding.cutting import cut_between_words, cut_into_tasks
from jaxgpt.data.encoding.growing import GrowingCorpus, OtherTasksError, Progress
from jaxgpt.data.encoding.workers import encode_tasks
from jaxgpt.data.hub import columns_and_size
from jaxgpt.data.sources import Documents, Source
from jaxgpt.data.special_texts import SpecialTexts
from jaxgpt.errors import UsageError
from jaxgpt.notes import note
from jaxgpt.progress import bar
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.roles import END_OF_TEXT
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

_LEARN_FROM = 1 << 28  # characters
_PARALLEL_FROM = 1 << 26  # bytes; below, starting processes takes longer than the work


@dataclass(frozen=True)
class Encoding:
    """The way from a text to tokens; see `load_corpus`."""

    bpe_vocab_size: int
    allow_special: bool
    workers: int | None
    progress: bool


def encode_corpus(place: Path, source: Source, tokenizer: str | Path | Tokenizer, how: Encoding) -> Path:
    """Return a folder in `place` with the token files of a source and its tokenizer, complete and on the disk.

    What is in `place` from a process that was stopped is gone on with. A tokenizer "char" or "bpe" is made from the
    text. What there is to say of the text is added to the source's notes.
    """
    folder, workers = place / "new", how.workers
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder)
    elif (made := _made_before(place, folder)) is not None:
        tokenizer = made
    else:
        tokenizer = make_tokenizer([source], str(tokenizer), how)
        tokenizer.save(folder)
        Progress(tokenizer.fingerprint).write(place)
    if workers is None:
        small = sum(map(_size, source.paths)) < _PARALLEL_FROM
        workers = 0 if small else _cores()
    with closing(GrowingCorpus(place, folder, tokenizer)) as corpus:
        corpus.open()
        try:
            _encode(corpus, source, tokenizer, folder, workers, how)
        except OtherTasksError:
            corpus.begin_anew()
            _encode(corpus, source, tokenizer, folder, workers, how)
    return folder


def _encode(
    corpus: GrowingCorpus, source: Source, tokenizer: Tokenizer, folder: Path, workers: int, how: Encoding
) -> None:
    special = {END_OF_TEXT, *tokenizer.special_tokens}
    seen = SpecialTexts(special.difference(tokenizer.special_tokens) if how.allow_special else special)

    watched: Documents = ((split, seen.watch(pieces)) for split, pieces in source.all_documents())
    tasks = corpus.left_of(cut_into_tasks(watched, tokenizer, how.allow_special))
    if there := sum(corpus.begun.tokens.values()):
        note(f"{source.name}: {there:,} tokens are there already, encoded by an earlier run that was stopped")
    with bar(source.name, unit="tokens", show=how.progress, initial=there) as shown:
        for task, ids in encode_tasks(
            tasks, tokenizer, folder=folder, processes=workers, allow_special=how.allow_special
        ):  # fmt: skip
            corpus.append(task, ids)
            shown.update(len(ids))
    corpus.complete()
    source.notes += seen.notes(source.name)


def _made_before(place: Path, folder: Path) -> Tokenizer | None:
    """Return the tokenizer that was made from the text by a process that was stopped, if it is whole."""
    if not (fingerprint := Progress.read(place).tokenizer):
        return None
    try:
        tokenizer = load_tokenizer(folder)
    except UsageError:
        return None
    return tokenizer if tokenizer.fingerprint == fingerprint else None


def make_tokenizer(sources: Sequence[Source], kind: str, how: Encoding) -> Tokenizer:
    """Return the tokenizer "char" or "bpe" of the texts of several sources, each of which counts as much as another."""
    if kind == "char":
        return CharTokenizer("".join(sorted(set[str]().union(*map(_alphabet, sources)))))
    texts = chain.from_iterable(_sample(source, _LEARN_FROM // len(sources)) for source in sources)
    return BPETokenizer.train(texts, how.bpe_vocab_size, progress=how.progress)


def _size(path: Path | str) -> int:
    """Return bytes of what is read."""
    return columns_and_size(path)[1] if isinstance(path, str) else path.stat().st_size


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alphabet(source: Source) -> set[str]:
    characters, begun = set[str](), set[str]()
    for split, document in source.all_documents():
        characters.update("\n" if split in begun else "")  # separates documents
        begun.add(split)
        for piece in document:
            characters.update(piece)
    return characters


def _sample(source: Source, characters: int) -> Iterator[str]:
    size = 0
    for document in source.documents("train"):
        for text in cut_between_words(document):
            yield text
            size += len(text)
            if size > characters:
                return
