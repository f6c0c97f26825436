"""What the processes of one run tell each other, so that an error in one ends all of them; one alone asks nobody."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import RunError, UsageError


def gather(value: Any) -> list[Any]:
    """Return every process's value, which JSON must be able to hold; all of them have to call this together."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(process_allgather(np.array(len(data))))
    rows = np.asarray(process_allgather(np.pad(data, (0, sizes.max() - len(data)))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


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
    """Let an error end this process at once if it is one of several, so that it ends the others, which wait for it.

    The orderly end, which JAX prepares, would wait for them in turn.
    """
    try:
        yield
    except RunError as error:
        if jax.process_count() == 1:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)


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
