"""Shared by the figures: the palette, a token's text, an array as an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from jaxgpt import checks
from jaxgpt.inspect.record import Inspection

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito 2008
AMOUNTS, SIGNED = "cividis", "PuOr_r"  # which is orange above zero, as the page
# More places than these are numbered, not named.
NAMED = 40


def printable(piece: str | bytes) -> str:
    """Return a token's text as one line that the figures' font has; a space shows as a dot."""
    text = piece.decode("utf-8", "backslashreplace") if isinstance(piece, bytes) else piece
    known = get_font(findfont("monospace")).get_charmap()
    text = "".join(
        "·" if c == " " else c if c.isprintable() and ord(c) in known else ascii(c).strip("'\"") for c in text
    )
    return text if len(text) <= 16 else f"{text[:15]}…"


def own_places(found: Inspection, row: int) -> tuple[slice, slice]:
    """Return which queries and keys of a record are a row's, and no padding."""
    row = checks.whole("row", row, 0, len(found.lengths) - 1)
    own = slice(int(found.lengths[row]))
    return own, own if found.cache is None else slice(int(found.cache.start[row]), int(found.cache.length))


def draw_image(axes: Axes, values: np.ndarray, title: str, *, signed: bool) -> None:
    """Draw an array as colours, about zero where its values have a sign."""
    most = float(np.abs(values).max()) if values.size else 1.0
    limits: dict[str, Any] = {"cmap": SIGNED, "vmin": -most, "vmax": most} if signed else {"cmap": AMOUNTS}
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **limits)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes)


def name_places(axes: Axes, labels: Sequence[str] | None, *, x: bool, y: bool) -> None:
    """Put the text at each place beside the axes, if there are not too many."""
    if labels is None or len(labels) > NAMED:
        return
    names = [printable(label) for label in labels]
    style: dict[str, Any] = {"fontsize": 7, "parse_math": False}
    if x:
        axes.set_xticks(np.arange(len(names)), names, rotation=90, **style)
    if y:
        axes.set_yticks(np.arange(len(names)), names, **style)
