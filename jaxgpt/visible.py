"""Texts on a terminal: what a model writes may hold characters that would command it, so they are spelled out."""

from __future__ import annotations

import re
import sys

# All of C0 but tab and line end, of which a carriage return before it is a part; DEL; C1.
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def visible(text: str) -> str:
    r"""Return a text for standard output: on a terminal with control characters spelled as `\x1b`, else as it is."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text) if sys.stdout.isatty() else text
