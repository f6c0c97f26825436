"""The two ways in which a command ends early, each one clear line for the user and never a traceback.

Anything else that reaches the terminal as a traceback is a bug of this package.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class UsageError(ValueError):
    """Bad input: a flag, file or argument. The message names it, its value, and what would be valid.

    The scripts print the message and exit with code 2.
    """


class RunError(RuntimeError):
    """A run that failed through no fault of its arguments (disk full, repeated NaN). Exit code 1."""


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Give an OSError that names no file this one's name: writing to a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of the `valid` names, or an empty string."""
    nearest = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
