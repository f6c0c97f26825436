"""Tasks go in, their ids come out, in the same order, by one process or by many."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from jaxgpt.data.encoding.cutting import Task
from jaxgpt.data.tokens.token_files import ids_dtype
from jaxgpt.errors import RunError
from jaxgpt.signals import shielded
from jaxgpt.tokenizers.tokenizer import Tokenizer, load_tokenizer

_IN_FLIGHT = 4  # tasks per process


def encode_tasks(
    tasks: Iterable[Task], tokenizer: Tokenizer, *, folder: Path, processes: int, allow_special: bool = False
) -> Iterator[tuple[Task, np.ndarray]]:
    """Yield each task with its ids, documents separated by the end-of-text token, or by a line end without one.

    Args:
        tasks: what to encode.
        tokenizer: encodes them.
        folder: has the tokenizer's files, from which other processes open it.
        processes: how many encode; with 0 this one does.
        allow_special: read a special token's text as that token.

    Raises:
        RunError: one of the processes was killed.
    """
    if processes == 0:
        yield from ((task, _encode(tokenizer, task.texts, allow_special)) for task in tasks)
        return
    # Not forked: JAX has threads, whose locks a forked child would wait for forever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        pending: deque[tuple[Task, Future[np.ndarray]]] = deque()
        try:
            for task in tasks:
                with shielded():  # the first call starts the processes
                    pending.append((task, pool.submit(_encode_in_process, folder, task.texts, allow_special)))
                if len(pending) > _IN_FLIGHT * processes:  # so that reading does not run ahead of encoding
                    yield _done(*pending.popleft())
            while pending:
                yield _done(*pending.popleft())
        except BrokenProcessPool:
            why = "a process that encoded was killed, as by a system that ran out of memory"
            raise RunError(f"{why}; {processes} of them were at work (workers)") from None


def _done(task: Task, ids: Future[np.ndarray]) -> tuple[Task, np.ndarray]:
    return task, ids.result()


def _encode(tokenizer: Tokenizer, texts: list[str | None], allow_special: bool) -> np.ndarray:
    separator = _separator(tokenizer) if None in texts else []
    ids: list[int] = []
    for text in texts:
        ids.extend(separator if text is None else tokenizer.encode_part(text, allow_special))
    return np.array(ids, ids_dtype(tokenizer.vocab_size))  # as they are stored: less is sent, and nothing is copied


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


def _encode_in_process(folder: Path, texts: list[str | None], allow_special: bool) -> np.ndarray:
    return _encode(_open_once(folder), texts, allow_special)
