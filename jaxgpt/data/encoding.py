"""Encoding more text than fits into memory: documents in pieces come in, arrays of ids go out, in order.

A text is cut only where a word ends whatever stands around it, so the ids are those of the whole text.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.signals import shielded
from jaxgpt.tokenizers import HFTokenizer
from jaxgpt.tokenizers.added_tokens import AddedTokens
from jaxgpt.tokenizers.bpe import BPE
from jaxgpt.tokenizers.tokenizer import Tokenizer, load_tokenizer

_CHUNK = 1 << 20  # characters encoded at a time
_LONGEST_WORD = 1 << 24  # characters without a place to cut, up to which a text is held in memory
_IN_FLIGHT = 4  # chunks per process

# No word of GPT-2's pattern goes on from a character that is not white space to one that is, and no word before or
# after such a place looks across it.
_LAST_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)

Task = list[str | None]
"""Texts to encode in one go; None separates two documents."""


def encode_documents(
    documents: Iterable[Iterator[str]],
    tokenizer: Tokenizer,
    *,
    folder: Path,
    processes: int,
    allow_special: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the ids of `documents`, separated by the end-of-text token, or by a line end where there is none.

    Args:
        documents: each an iterator over its pieces.
        tokenizer: encodes them.
        folder: has the tokenizer's files, from which other processes open it.
        processes: how many encode; with 0 this one does.
        allow_special: read a special token's text as that token.
    """
    tasks = _group(_separate(documents, tokenizer, allow_special))
    yield np.array(tokenizer.ends.begin, np.uint32)
    yield from _encode_tasks(tasks, tokenizer, folder, processes, allow_special)
    yield np.array(tokenizer.ends.end, np.uint32)


def _encode_tasks(
    tasks: Iterable[Task], tokenizer: Tokenizer, folder: Path, processes: int, allow_special: bool
) -> Iterator[np.ndarray]:
    if processes == 0:
        yield from (_encode(tokenizer, task, allow_special) for task in tasks)
        return
    # Not forked: JAX has threads, whose locks a forked child would wait for forever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        pending: deque[Future[np.ndarray]] = deque()
        for task in tasks:
            with shielded():  # the first call starts the processes
                pending.append(pool.submit(_encode_in_process, folder, task, allow_special))
            if len(pending) > _IN_FLIGHT * processes:  # so that reading does not run ahead of encoding
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def cut_between_words(pieces: Iterable[str], added: AddedTokens | None = None) -> Iterator[str]:
    """Yield a text anew in pieces whose ids, one after another, are the ids of the whole.

    Args:
        pieces: the text.
        added: tokens that are found in it, none of which is cut.

    Raises:
        UsageError: if it goes on for 16 million characters without a space after a word.
    """
    held = ""
    for piece in pieces:
        held += piece
        if len(held) >= _CHUNK and (cut := _last_cut(held, added)):
            yield held[:cut]
            held = held[cut:]
        elif len(held) > _LONGEST_WORD:
            raise UsageError(f"{len(held)} characters from {held[:40]!r} on have no space between words to cut them at")
    if held:
        yield held


def _last_cut(text: str, added: AddedTokens | None) -> int:
    if added is not None:
        return added.last_cut(text, _LAST_CUT)
    match = _LAST_CUT.match(text)
    return match.end() if match else 0


def _separate(documents: Iterable[Iterator[str]], tokenizer: Tokenizer, allow_special: bool) -> Iterator[str | None]:
    for number, pieces in enumerate(documents):
        if number:
            yield None
        if isinstance(tokenizer, BPE):
            found = tokenizer.added if allow_special or tokenizer.added.in_plain_text else None
            yield from cut_between_words(pieces, found)
        elif isinstance(tokenizer, HFTokenizer):
            yield _whole(pieces)
        else:
            yield from pieces


def _whole(pieces: Iterable[str]) -> str:
    """Return a document as one text, as it may be cut nowhere by a tokenizer of which nothing is known."""
    text = ""
    for piece in pieces:
        text += piece
        if len(text) > _LONGEST_WORD:
            raise UsageError(
                f"the document that begins {text[:40]!r} has more than {_LONGEST_WORD} characters, and a tokenizer of "
                "another kind than GPT-2's takes a document whole: divide it (--document_separator)"
            )
    return text


def _group(texts: Iterable[str | None]) -> Iterator[Task]:
    """Put small documents together, so that sending them to another process is worth it."""
    task: Task = []
    size = 0
    for text in texts:
        task.append(text)
        size += len(text or "")
        if size >= _CHUNK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _encode(tokenizer: Tokenizer, task: Task, allow_special: bool) -> np.ndarray:
    separator = _separator(tokenizer) if None in task else []
    ids: list[int] = []
    for text in task:
        ids.extend(separator if text is None else tokenizer.encode_part(text, allow_special))
    return np.array(ids, np.uint32)


def _separator(tokenizer: Tokenizer) -> list[int]:
    """Return what stands between two documents: the end-of-text token, once, or else a line end."""
    begin, end, eos = tokenizer.ends.begin, tokenizer.ends.end, tokenizer.eos_token_id
    if eos is None:
        return [*end, *([] if begin or end else tokenizer.encode_part("\n")), *begin]
    return [*end, *([] if eos in (*end, *begin) else [eos]), *begin]


def _follow_parent() -> None:
    """End with the process that started this one, even if it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


_open_once = functools.cache(load_tokenizer)


def _encode_in_process(folder: Path, task: Task, allow_special: bool) -> np.ndarray:
    return _encode(_open_once(folder), task, allow_special)
