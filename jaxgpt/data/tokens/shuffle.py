"""A shuffle of windows that needs no memory: where the row after n others begins, as a function of (seed, n).

The ids are cut into windows, in each epoch at other places, and every epoch visits all of its windows in an order of
its own. A Feistel network (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom
functions") permutes the numbers below a power of 4; it is applied again to what is no window's number, until it is one
("cycle walking", Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). So no order is ever stored, and any
place in it is found at once.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step (Steele, Lea and Flood 2014), whose function `_mixed` is


def windows_in_epoch(length: int, block_size: int) -> int:
    """Return how many windows an epoch has: all that fit at whatever place the first begins.

    Fewer than two windows' ids at the ends are left out, in each epoch others.

    Args:
        length: number of ids, more than `block_size`.
        block_size: T; a window has one id more, which the next begins with.
    """
    return max((length - 1) // block_size - 1, 1)


def shuffled_starts(
    first: int, numbers: np.ndarray, *, length: int, block_size: int, seed: int, stream: int
) -> np.ndarray:
    """Return where windows begin, each at its place in the epochs' orders.

    Args:
        first: a place in all epochs' orders together; of any size.
        numbers: (N,) how many places after that each window stands.
        length: number of ids, more than `block_size`.
        block_size: T.
        seed, stream: of the run, and of one of its sequences of ids; both decide the orders.
    """
    count = windows_in_epoch(length, block_size)
    epoch, place = divmod(first, count)
    epochs, places = np.divmod(place + numbers.astype(np.uint64), np.uint64(count))
    keys = _mixed(np.uint64(epoch % 2**64) + epochs + _key(seed, stream))
    offsets = _mixed(keys) % np.uint64(min(block_size, length - count * block_size))
    return (permuted(places, count, keys) * np.uint64(block_size) + offsets).astype(np.int64)


def permuted(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Return the number that stands at each place of a permutation of the numbers below `count`.

    Args:
        places: (N,) below `count`.
        count: how many numbers there are.
        keys: (N,) which permutation each place is of.
    """
    half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)  # bits
    found, walking = places.astype(np.uint64), np.arange(len(places))
    while len(walking):
        found[walking] = _feistel(found[walking], half, keys[walking])
        walking = walking[found[walking] >= count]
    return found


def _feistel(numbers: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Permute the numbers below 4^half."""
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & low
    for number in range(1, _ROUNDS + 1):
        round_key = keys + np.uint64(number * _GOLDEN % 2**64)
        left, right = right, left ^ (_mixed(_mixed(round_key) + right) & low)
    return left << half | right


def _key(seed: int, stream: int) -> np.ndarray:
    """Return (1,) a number that both decide."""
    return _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(stream))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of 64 bits, each of whose bits depends on all of its own."""
    found = numbers + np.uint64(_GOLDEN)
    found = (found ^ found >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ found >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return found ^ found >> np.uint64(31)
