"""Figures of models: a table for people, JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def table(results: Mapping[str, Mapping[str, float | int]]) -> str:
    """Return figures (rows) of models (columns), as a table in Markdown."""
    names = dict.fromkeys(name for found in results.values() for name in found)
    rows = [["", *results], *([name, *(_shown(found.get(name)) for found in results.values())] for name in names)]
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        " | ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in widths)])
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def finite(value: Any) -> Any:
    """Return figures as JSON can hold them: null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3e}"
