"""The door of every command: what its process is given before anything else is imported.

Ctrl-C ends it with a line at every moment, and standard streams may be closed, narrow or left by their readers.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import threading
from typing import Any, TextIO

from jaxgpt.signals import hang_up, interruptible

TITLES = {1: "standard output", 2: "standard error"}


def train() -> None:
    """Be `train.py`."""
    run("jaxgpt.cli.train")


def generate() -> None:
    """Be `generate.py`."""
    run("jaxgpt.cli.generate")


def convert() -> None:
    """Be `convert_weights.py`."""
    run("jaxgpt.cli.convert")


def evaluate() -> None:
    """Be `python -m jaxgpt.evaluate`."""
    run("jaxgpt.cli.evaluate")


def harness() -> None:
    """Be `jaxgpt-eval`."""
    run("jaxgpt.cli.harness")


def explore() -> None:
    """Be `jaxgpt-explore`."""
    run("jaxgpt.cli.explore")


def run(module: str) -> None:
    """Import a command's module and call its `main`."""
    open_streams()  # before anything takes a closed one's number
    with interruptible():
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            if end.code and _compiles_in_vain():
                sys.stdout.flush()
                os._exit(int(end.code))
            raise


def _compiles_in_vain() -> bool:
    """Return whether a thread compiles for a run that has failed, for which Python's own end would wait.

    Not in a run of several processes, whose end is JAX's.
    """
    from jaxgpt.progress import COMPILING

    return any(thread.name == COMPILING for thread in threading.enumerate()) and sys.modules["jax"].process_count() == 1


def open_streams() -> None:
    """Give standard streams that any text can be written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, and the next file would get its number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _open(1, sys.stdout), _open(2, sys.stderr)


def _open(number: int, stream: TextIO | None) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    # What the encoding lacks is written as \u2019, unless somebody has chosen otherwise.
    errors = "backslashreplace" if stream is None or stream.errors in ("strict", "surrogateescape") else stream.errors
    raw = _Output(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)


class _Output(io.FileIO):
    """A stream that fails once at most: from then on what is written to it goes nowhere."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise OSError(error.errno, error.strerror, TITLES[1]) from None
                hang_up()
            return len(data)
