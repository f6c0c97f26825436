"""Messages between the processes of one run, so that an error in one ends all of them; one alone asks nobody."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # there is no other way to what processes tell each other beside arrays

from jaxgpt.errors import RunError, UsageError, report
from jaxgpt.signals import leave, on_interrupt

TOGETHER = 5
"""Seconds between the first and the last process to meet an error that they all have."""
TOLD = 3
"""Seconds in which all processes hear of the end of one; they look every half second."""
_END = "jaxgpt/end"


def gather(value: Any) -> list[Any]:
    """Return every process's value, which JSON must be able to hold; all of them have to call this together."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(process_allgather(np.array(len(data))))
    rows = np.asarray(process_allgather(np.pad(data, (0, sizes.max() - len(data)))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def fetch(tree: Any) -> Any:
    """Return arrays' values, also of parts that lie with other processes; all of these have to call this together."""
    return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(leaf, tiled=True))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let all processes leave the block, or none: what ends one is raised in all. Nothing in it may wait for others.

    Raises:
        RunError: another process ended.
    """
    error = None
    try:
        yield
    except (UsageError, RunError) as caught:
        error = caught
    except OSError as caught:
        error = RunError(f"{caught.filename or 'a file'}: {caught.strerror or caught}")
    reasons = gather(None if error is None else str(error))
    if error is not None:
        raise error
    for process, reason in enumerate(reasons):
        if reason is not None:
            raise RunError(f"process {process} of this run ended: {reason}")


@contextlib.contextmanager
def one_for_all() -> Iterator[None]:
    """Let whatever ends this process end all those of its run, with the reason, be they waiting or compiling.

    An error that all meet at the same time is left alone. With one that only this process has, the orderly end, which
    JAX prepares, would wait for the others in turn.
    """
    over = threading.Event()
    watch = threading.Thread(target=_end_with_others, args=(over,), daemon=True)
    watch.start()
    try:
        with on_interrupt(partial(_tell_end, "interrupted")):
            yield
    except BaseException as error:
        if _client() is None or _all_end():
            raise
        over.set()
        watch.join()  # if another was first, this ends with its reason
        code = error.code if isinstance(error, SystemExit) else report(error)
        if code is None:
            traceback.print_exception(error)
        _tell_end(str(error) if isinstance(error, UsageError | RunError) else f"{type(error).__name__}: {error}")
        os._exit(1 if code is None else int(code))
    finally:
        over.set()
        watch.join()


def _tell_end(reason: str) -> None:
    """Let the other processes of the run know why this one ends; the first reason counts."""
    if (client := _client()) is not None:
        own = f"process {distributed.global_state.process_id} of this run ended: {reason}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(_END, own.splitlines()[0])
        _end_last()


def _all_end() -> bool:
    """Return whether all processes come here within `TOGETHER` seconds."""
    try:
        _client().wait_at_barrier(_END, 1000 * TOGETHER)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _end_with_others(over: threading.Event) -> None:
    """Look again and again whether another process has ended, for the last time when it is `over`."""
    looks = True
    while looks:
        looks = not over.wait(0.5)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has
            if (client := _client()) is not None:
                reason = client.key_value_try_get(_END)
                _end_last()
                leave(1, f"error: {reason}")


def _end_last() -> None:
    """Wait, in the first process, through which they all speak, until the others have heard."""
    if distributed.global_state.process_id == 0:
        time.sleep(TOLD)


def _client() -> Any:
    """Return this process's line to the others; None if it is alone, has not joined them, or has left them."""
    state = distributed.global_state
    # JAX makes the manager when the client has been connected: one that has not been ends the process when it is used.
    return None if state.preemption_sync_manager is None else state.client


def refuse_disagreement(record: Mapping[str, Any]) -> None:
    """Make sure that all processes are about to do the same.

    Raises:
        UsageError: their records differ; the message names the fields.
    """
    first, *others = gather(dict(record))
    for process, other in enumerate(others, 1):
        names = [name for name in first if other.get(name) != first[name]]
        if names:
            differences = "; ".join(f"{name} is {other.get(name)}, and {first[name]} in process 0" for name in names)
            raise UsageError(f"process {process} of this run does not do the same: {differences}")
