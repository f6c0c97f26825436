"""A mixture of corpora: which of them each row of a run comes from, and how many rows each had before.

Row n is a point of van der Corput's sequence (1935), the bits of n in reverse order, moved by the seed, and a corpus
has an interval of points as wide as its weight. So the rows of any stretch are shared out as the weights say, to within
a few, and how many of the first n rows fall into an interval is a sum over the bits of n: nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.files import digest

_BITS = 32  # of a point; the sequence repeats after 2^32 rows
_HALVES = ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF))


@dataclass(frozen=True)
class Mixture:
    """Several sequences of ids of which rows are drawn in fixed shares.

    Attributes:
        names: what each is called.
        sources: their ids.
        weights: the share of rows of each, above 0; together 1.
    """

    names: tuple[str, ...]
    sources: tuple[Tokens, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    @property
    def name(self) -> str:
        """What messages call it."""
        return " + ".join(self.names)

    @property
    def shown_weights(self) -> str:
        """The weights in words, the same on every machine."""
        return ", ".join(f"{weight:.9g}" for weight in self.weights)

    @property
    def fingerprint(self) -> str:
        """Of all ids; the weights are no part of it."""
        return digest([source.fingerprint for source in self.sources])

    def check_unchanged(self) -> None:
        """Make sure that all files are still those that were opened.

        Raises:
            RunError: see `TokenFile.check_unchanged`.
        """
        for source in self.sources:
            source.check_unchanged()

    def sources_of(self, first: int, count: int, *, seed: int) -> np.ndarray:
        """Return (count,) the number of the source of each of `count` rows of a run, from row `first` on."""
        rows = np.uint64(first % 2**_BITS) + np.arange(count, dtype=np.uint64)
        points = _reversed(rows & np.uint64(2**_BITS - 1)) ^ np.uint64(_shift(seed))
        return np.searchsorted(self._ends, points.astype(np.int64), side="right")

    def rows_before(self, first: int, *, seed: int) -> list[int]:
        """Return how many of a run's rows before row `first` come from each source."""
        below = [0, *(_points_below(end, first, _shift(seed)) for end in self._ends.tolist())]
        return [high - low for low, high in zip(below, below[1:], strict=False)]

    def shares(self, count: int) -> list[tuple[Tokens, int, float]]:
        """Return of each source its ids, how many of about `count` batches to measure it on, one at least, and the
        weight of each of these, with which the mean over all is that of the mixture, and the mean weight 1.
        """
        counts = [max(round(count * weight), 1) for weight in self.weights]
        scales = [weight * sum(counts) / own for weight, own in zip(self.weights, counts, strict=True)]
        return list(zip(self.sources, counts, scales, strict=True))

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where the interval of each source ends, in points."""
        ends = np.rint(np.cumsum(self.weights) * 2**_BITS).astype(np.int64)
        ends[-1] = 2**_BITS
        return ends


def proportions(names: Sequence[str], sources: Sequence[Tokens], weights: Sequence[float | int] | None) -> Mixture:
    """Return a mixture by these weights, of any sum; None for as many rows of each as it has tokens."""
    given = [len(source) for source in sources] if weights is None else weights
    shares = [weight / max(given) for weight in given]  # whose sum is no infinity
    return Mixture(tuple(names), tuple(sources), tuple(share / sum(shares) for share in shares))


def _shift(seed: int) -> int:
    """Return bits that depend on the seed."""
    return int(np.random.Philox(key=seed).random_raw()) >> (64 - _BITS)


def _reversed(rows: np.ndarray) -> np.ndarray:
    """Return numbers with their bits in reverse order."""
    for width, mask in _HALVES:
        shift, low = np.uint64(width), np.uint64(mask)
        rows = ((rows >> shift) & low) | ((rows & low) << shift)
    return rows


def _points_below(end: int, rows: int, shift: int) -> int:
    """Return how many of the first rows have points below `end`.

    Rows from k·2^j on, 2^j of them, have all first j bits of a point, and behind these the same ones.
    """
    periods, rows = divmod(rows, 2**_BITS)
    found = periods * end
    for bit in range(_BITS):
        if rows >> bit & 1:
            block = rows >> (bit + 1) << (bit + 1)
            free = _BITS - bit
            behind = (int(_reversed(np.array([block], np.uint64))[0]) ^ shift) % 2**free
            found += ((end - behind - 1) >> free) + 1
    return found
