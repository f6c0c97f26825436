"""Arrays and texts as a page holds them: small, and safe to stand in HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import regex

_HIDDEN = regex.compile(r"[\p{Cc}\p{Cf}\p{Z}]")
_SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})
# What would end the script element, begin a comment in it, or end a line of JavaScript.
UNSAFE = {char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def as_json(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand in a script element, whatever texts are in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return "".join(UNSAFE.get(char, char) for char in text)


def packed(x: Any, dtype: str = "f2") -> dict[str, Any]:
    """Return an array for `unpack` of the page's script.

    Args:
        x: the array.
        dtype: NumPy's; "u1" scales values from 0 to the greatest to 0 … 255, "i1" those of two signs to −127 … 127, and
            "f2" cuts them at f16's ends.
    """
    x = np.asarray(x)
    scale = 1.0
    if dtype in ("u1", "i1"):
        scale = float(np.abs(x).max(initial=0)) / (255 if dtype == "u1" else 127) or 1.0
        x = np.round(x / scale)
    elif dtype == "f2":
        x = np.clip(x, -65504, 65504)
    raw = np.ascontiguousarray(x.astype(f"<{dtype}")).tobytes()
    return {"dtype": dtype, "shape": list(x.shape), "scale": scale, "data": base64.b64encode(raw).decode()}


def shown(piece: bytes) -> str:
    """Return a token's bytes as a text to look at, as `visible` of the page's script does.

    White space stands there by signs, what has no shape as \\u{…}, bytes that are no text as \\xNN.
    """
    text = piece.decode("utf-8", "backslashreplace").translate(_SIGNS)
    return _HIDDEN.sub(lambda char: f"\\u{{{ord(char[0]):x}}}", text)
