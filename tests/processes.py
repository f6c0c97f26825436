"""Processes that tests start: each leads a group, which ends with it, so that none is waited for for ever."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def started(argv: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Begin a process; kill it and all that it has begun when the block ends, by an exception or not."""
    with subprocess.Popen(argv, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            end(process)


def run(argv: Sequence[Any], *, timeout: float = 300, check: bool = False, **options: Any) -> Any:
    """Do what `subprocess.run` does, which after `timeout` would still wait for those that hold the process's pipes."""
    with started(argv, **options) as process:
        output, errors = process.communicate(timeout=timeout)
    done = subprocess.CompletedProcess(argv, process.returncode, output, errors)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} ended with {done.returncode}: {errors or ''}")
    return done


def end(process: subprocess.Popen[Any]) -> None:
    """Kill the group that a process leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
