"""A table of vectors: which lie near each other, a flat map of them, and what attention makes of their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.inspect.stages import attention_stages


def nearest(table: Float[np.ndarray, "V D"], token: int, count: int = 10) -> list[tuple[int, float]]:
    """Return the `count` rows most like a row by cosine, itself left out, as (index, cosine).

    Raises:
        UsageError: there is no such row.
    """
    token = checks.whole("token", token, 0, len(table) - 1)
    return nearest_to_each(table, [token], checks.whole("count", count, 1))[0]


def nearest_to_each(
    table: Float[np.ndarray, "V D"], tokens: Sequence[int], count: int
) -> list[list[tuple[int, float]]]:
    """Return for each of several rows what `nearest` finds for one, but measure the table once."""
    found = []
    for token, row in zip(tokens, cosines(table, tokens), strict=True):
        order = np.argsort(-row, kind="stable")[: count + 1]
        found.append([(int(i), float(row[i])) for i in order if i != token][:count])
    return found


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


def bag_of_words(
    words: Float[np.ndarray, "T D"], positions: Float[np.ndarray, "T D"], order: Sequence[int]
) -> dict[str, Float[np.ndarray, "2 D"]]:
    """Return what attention gives for the same words in two orders, summed over all places, in each order a row.

    Attention here has no weights and no mask. "without" positions the rows are equal: order is lost. "with" them they
    are not.

    Args:
        words: vectors of a text's tokens.
        positions: of its places.
        order: a permutation of 0 … T-1.

    Raises:
        UsageError: `order` is none.
    """
    if len(order) != len(words) or sorted(order) != list(range(len(words))):
        raise UsageError(f"order: {list(order[:10])} …; it must have each of 0 to {len(words) - 1} once")
    rows, shuffled = np.asarray(words, np.float32), np.asarray(words, np.float32)[list(order)]
    return {
        name: np.stack([attention_stages(x + added, scaled=True).out[0].sum(0) for x in (rows, shuffled)])
        for name, added in (("without", np.float32(0)), ("with", np.asarray(positions, np.float32)))
    }


def _units(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
