"""Progress of what takes long: one live line with a bar, by tqdm, on a terminal, and nothing of it elsewhere.

Lines that stay are said by `say`, which lets no bar stand in their way.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from jaxgpt.devices import return_memory

SHORT = 1.0
"""Seconds of which nothing is said."""
COMPILING = "compiling"
"""The name of a thread that compiles."""


class Bar(tqdm):
    """A bar of tqdm's, without the thread that redraws others of its bars."""

    monitor_interval = 0


def bar(
    what: str,
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    unit: str = "it",
    show: bool | None = None,
    file: Any = None,
    **more: Any,
) -> Bar:
    """Return a bar that is gone when it is done; iterated over, it gives `items` and counts them.

    Args:
        what: stands before it.
        items: what is gone through; None where the caller counts, by `update`.
        total: how many there are; None: as `items` says, if it does.
        unit: of what they are.
        show: None for where `file` is a terminal.
        file: where it is shown; None for standard error.
        more: arguments of `tqdm`.
    """
    file = sys.stderr if file is None else file
    hidden = not (file.isatty() if show is None else show)
    width = {"dynamic_ncols": True} if hidden or _columns(file) else {"ncols": 80, "nrows": 24}
    how = {"unit_scale": True, "leave": False, "delay": SHORT / 2, **width, **more}
    return Bar(items, desc=what, total=total, unit=f" {unit}", file=file, disable=hidden, **how)


def _columns(file: Any) -> int:
    """Return how wide a terminal is; 0 where it does not say."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except OSError:
        return 0


def say(text: str) -> None:
    """Print a line that stays, above what is live."""
    with Bar.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def close_bars() -> None:
    """Take all bars away, for what ends the command is said next."""
    for shown in list(getattr(Bar, "_instances", ())):
        shown.close()


@contextlib.contextmanager
def compiling(what: str, *, after: float = SHORT) -> Iterator[None]:
    """Say that something is being compiled while the block lasts, and how long it took.

    Nothing is said of what is done within `after` seconds, as programs from a cache are.
    """
    begin, waiting = time.perf_counter(), threading.Timer(after, say, [f"compiling {what} …"])
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()
        waiting.join()
    if (seconds := time.perf_counter() - begin) > after:
        say(f"compiled {what} in {seconds:.1f} s")


class Compiled:
    """A jitted function, whose first call says that it compiles, and gives back what memory that took.

    Attributes:
        jitted: the function itself.
    """

    def __init__(self, what: str, jitted: Any) -> None:
        """Say of `jitted` that it is `what`."""
        self.jitted, self._what, self._called = jitted, what, False
        self._begun: threading.Thread | None = None

    def begin(self, *args: Any) -> None:
        """Compile for arguments of these shapes in a thread, beside what the caller does next; a call waits for it."""
        self._begun = threading.Thread(target=self._compile, args=args, name=COMPILING)
        self._begun.start()

    def __call__(self, *args: Any) -> Any:
        if self._called:
            return self.jitted(*args)
        self._called = True
        with compiling(self._what):
            found = self.jitted(*args) if self._begun is None else self._begun.join()
        return_memory()
        return found if self._begun is None else self.jitted(*args)

    def _compile(self, *args: Any) -> None:
        with contextlib.suppress(Exception):  # the call meets it again
            self.jitted.lower(*args).compile()
