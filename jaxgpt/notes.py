"""Notes: what a user should know of, and what nothing ends by. One line on standard error, once a process."""

from __future__ import annotations

import functools
import sys

from jaxgpt.errors import UsageError


@functools.cache
def note(text: str) -> None:
    """Print a note, unless it has been printed already; like an error's message it is one line of bounded length."""
    print(f"note: {UsageError(text)}", file=sys.stderr, flush=True)
