"""Batches: windows of a corpus in tokens as a function of (seed, step).

Nothing is iterated, so there is no place in the data to save: the batch of a step is the same after a resume, and the
rows of all hosts together are the same however many hosts there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt import checks
from jaxgpt.data.tokens.mixture import Mixture
from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.data.tokens.shuffle import shuffled_starts
from jaxgpt.errors import UsageError

MOST_ID = 2**31 - 1


@flax.struct.dataclass
class Batch:
    """Rows of token ids and what to predict from each: numpy arrays as made here, jax arrays once on a device.

    Attributes:
        tokens: (B, T) int32, input ids.
        targets: (B, T) int32, the id that follows each.
        weights: (B, T) f32, each target's weight in the loss; 0 leaves it out.
        positions: (B, T) int32, each token's position in its document; None where rows start at position 0.
        segment_ids: (B, T) int32, which of its row's documents a token belongs to, from 1; 0 is padding. Attention
            stays within a document. None where each row is one document.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    weights: Float[Array | np.ndarray, "B T"]
    positions: Int[Array | np.ndarray, "B T"] | None = None
    segment_ids: Int[Array | np.ndarray, "B T"] | None = None


def random_batch(
    data: Tokens | Mixture | checks.Ids,
    *,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    shuffle: bool = False,
    shard: int = 0,
    num_shards: int = 1,
) -> Batch:
    """Return windows of `block_size` tokens that begin anywhere in `data` with equal probability, or shuffled ones.

    Args:
        data: token ids, one after another, or a mixture of such; longer than `block_size`, each.
        seed: of the run; with `step` it decides the batch.
        step: which batch.
        batch_size: rows of all shards together.
        block_size: T.
        shuffle: visit every window once an epoch, see `jaxgpt.data.tokens.shuffle`; of a mixture each source has epochs
            of its own. Else windows are drawn with replacement.
        shard: which part of the rows to return, one of `num_shards`: rows shard·B/num_shards and on.
        num_shards: number of hosts that feed themselves; must divide `batch_size`.

    Returns:
        A batch of batch_size / num_shards rows.
    """
    sources, batch_size, block_size = _checked(data, batch_size, block_size)
    seed, step = (checks.whole(name, value, 0, 2**64 - 1) for name, value in (("seed", seed), ("step", step)))
    first, which, before = step * batch_size, np.zeros(batch_size, np.int64), [step * batch_size]
    if isinstance(data, Mixture):
        which, before = data.sources_of(first, batch_size, seed=seed), data.rows_before(first, seed=seed)
    starts = np.empty(batch_size, np.int64)
    if checks.flag("shuffle", shuffle):
        for number, source in enumerate(sources):
            own = which == number
            sizes = {"length": len(source), "block_size": block_size}
            starts[own] = shuffled_starts(before[number], np.arange(own.sum()), **sizes, seed=seed, stream=number)
    else:
        # Philox is counter-based: any batch is drawn at once, without drawing those before it.
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
        room = np.array([len(source) - block_size for source in sources])
        starts = generator.integers(room[which] if len(sources) > 1 else room[0], size=batch_size)
    return _windows(sources, rows_of(shard, num_shards, np.stack([which, starts], 1)), block_size)


def eval_batch(
    data: Tokens | checks.Ids,
    *,
    index: int,
    count: int,
    batch_size: int,
    block_size: int,
    shard: int = 0,
    num_shards: int = 1,
) -> Batch:
    """Return evaluation batch number `index` of `count`: windows spread evenly over all of `data`.

    They are the same at every evaluation, so that losses differ by the model alone, and spread because as many random
    ones miss the mean of tiny Shakespeare's validation part by 0.01 either way. Other arguments are as for
    `random_batch`.
    """
    [source], batch_size, block_size = _checked(data, batch_size, block_size)
    count = checks.whole("count", count, 1, checks.MOST_IDS // batch_size)
    index = checks.whole("index", index, 0, count - 1)
    numbers = np.arange(index * batch_size, (index + 1) * batch_size)
    starts = numbers * (len(source) - block_size - 1) // max(count * batch_size - 1, 1)
    rows = np.stack([np.zeros_like(starts), starts], 1)
    return _windows([source], rows_of(shard, num_shards, rows), block_size)


def rows_of(shard: int, num_shards: int, rows: np.ndarray) -> np.ndarray:
    """Return the part of a whole batch's rows, or of what they are made from, that falls to one of the hosts."""
    num_shards = checks.whole("num_shards", num_shards, 1)
    shard = checks.whole("shard", shard, 0, num_shards - 1)
    if len(rows) % num_shards:
        below = len(rows) // num_shards * num_shards
        near = " or ".join(str(n) for n in (below, below + num_shards) if n)
        raise UsageError(f"batch_size {len(rows)} must be divisible by the {num_shards} hosts; try {near}")
    return np.split(rows, num_shards)[shard]


def _checked(data: Any, batch_size: int, block_size: int) -> tuple[Sequence[Tokens | np.ndarray], int, int]:
    """Return the sources of rows, and the sizes of a batch, which they are enough for."""
    sources = data.sources if isinstance(data, Mixture) else [data]
    wanted = "a TokenFile, or token ids of one axis"
    sources = [source if isinstance(source, Tokens) else checks.ids("data", source, wanted) for source in sources]
    block_size = checks.whole("block_size", block_size, 1)
    batch_size = checks.whole("batch_size", batch_size, 1)
    if (shortest := min(map(len, sources))) <= block_size:
        raise UsageError(
            f"{shortest} tokens of data are too few for block_size {block_size}, which needs {block_size + 1}"
        )
    check_room(batch_size, block_size)
    return sources, batch_size, block_size


def check_room(rows: int, length: int) -> None:
    """Refuse what no memory holds before it is asked for."""
    if rows * length > checks.MOST_IDS:
        raise UsageError(f"{rows} rows of {length} tokens are too many; a batch has at most {checks.MOST_IDS} tokens")


def _windows(sources: Sequence[Any], rows: np.ndarray, block_size: int) -> Batch:
    """Return the batch of rows, (B, 2) the number of each one's source and where in that it begins."""
    # By slices: of rows from many files, an array of all places would have to be sorted by file.
    found = [sources[number][start : start + block_size + 1] for number, start in rows.tolist()]
    windows = narrow("data", np.stack(found))
    return Batch(windows[:, :-1], windows[:, 1:], np.ones((len(rows), block_size), np.float32))


def narrow(name: str, ids: np.ndarray) -> np.ndarray:
    """Return ids in 32 bits, in which NumPy would wrap others around."""
    if ids.size and (ids.min() < 0 or ids.max() > MOST_ID):
        bad = next(token for token in ids.flat if not 0 <= token <= MOST_ID)
        raise UsageError(f"{name} has the id {bad}; ids are from 0 to {MOST_ID}")
    return ids.astype(np.int32)
