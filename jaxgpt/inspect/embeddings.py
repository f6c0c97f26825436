"""A table of vectors: which lie near each other, and a flat map of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxgpt import checks


def nearest(table: Float[np.ndarray, "V D"], token: int, count: int = 10) -> list[tuple[int, float]]:
    """Return the `count` rows most like a row by cosine, itself left out, as (index, cosine).

    Raises:
        UsageError: there is no such row.
    """
    table = np.asarray(table, np.float32)
    token = checks.whole("token", token, 0, len(table) - 1)
    cosines = _units(table) @ _units(table[token])
    order = np.argsort(-cosines, kind="stable")
    return [(int(i), float(cosines[i])) for i in order if i != token][: checks.whole("count", count, 1)]


def principal_components(table: Float[np.ndarray, "N D"], count: int = 2) -> Float[np.ndarray, "N M"]:
    """Return the rows' coordinates along the `count` directions in which they differ most (Pearson 1901)."""
    table = np.asarray(table, np.float32)
    u, s, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    found = (u * s)[:, :count]
    return np.pad(found, ((0, 0), (0, count - found.shape[1])))  # fewer rows than directions


def cosines(table: Float[np.ndarray, "N D"], rows: Sequence[int] | None = None) -> Float[np.ndarray, "M N"]:
    """Return the cosine of each row, or of each of `rows`, with each."""
    units = _units(np.asarray(table, np.float32))
    return (units if rows is None else units[list(rows)]) @ units.T


def _units(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
