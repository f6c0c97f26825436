"""Batches: windows of a token file as a function of (seed, step), and lists of documents padded or packed.

Nothing is iterated, so there is no place in the data to save: the batch of a step is the same after a resume, and the
rows of all hosts together are the same however many hosts there are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace

import flax.struct
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.errors import UsageError
from jaxgpt.text.token_files import TokenFile


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
    data: TokenFile | np.ndarray,
    *,
    seed: int,
    step: int,
    batch_size: int,
    block_size: int,
    shard: int = 0,
    num_shards: int = 1,
) -> Batch:
    """Return windows of `block_size` tokens that begin anywhere in `data` with equal probability.

    Args:
        data: token ids, one after another; longer than `block_size`.
        seed: of the run; with `step` it decides the batch.
        step: which batch.
        batch_size: rows of all shards together.
        block_size: T.
        shard: which part of the rows to return, one of `num_shards`: rows shard·B/num_shards and on.
        num_shards: number of hosts that feed themselves; must divide `batch_size`.

    Returns:
        A batch of batch_size / num_shards rows.
    """
    starts = _draw_starts(len(data), seed, step, batch_size, block_size)
    return _windows(data, rows_of(shard, num_shards, starts), block_size)


def eval_batch(
    data: TokenFile | np.ndarray,
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
    _check_length(len(data), block_size)
    numbers = np.arange(index * batch_size, (index + 1) * batch_size)
    starts = numbers * (len(data) - block_size - 1) // max(count * batch_size - 1, 1)
    return _windows(data, rows_of(shard, num_shards, starts), block_size)


def pad_batch(
    documents: Sequence[Sequence[int]],
    *,
    length: int | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay each document into a row of its own, padded on the right.

    Padding is known by length and not by id, so `pad_id` may be a token that documents end with. It needs no mask:
    attention is causal, and what stands behind a document has weight 0.

    Args:
        documents: token ids, at least 2 each (the last is only a target).
        length: T; by default that of the longest document, less 1.
        weights: for each token of each document, its weight as a target (its first is none); 1 by default.
        pad_id: what fills the rows.
    """
    _check_documents(documents, weights)
    longest = max(map(len, documents)) - 1
    length = longest if length is None else length
    if longest > length:
        raise UsageError(f"a document of {longest + 1} tokens does not fit into rows of length {length}")
    batch = _empty_rows(len(documents), length, pad_id)
    for row, document in enumerate(documents):
        _place(batch, row, 0, document, None if weights is None else weights[row])
    return batch


def pack(
    documents: Sequence[Sequence[int]],
    *,
    length: int,
    weights: Sequence[Sequence[float]] | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay documents one behind another into as few rows as best-fit finds, none seeing another.

    Positions restart and segment ids count up with each document, and no document's last token has the next one's
    first as its target. A document too long for a row is continued in further ones, each a segment of its own.

    Args:
        documents: token ids, at least 2 each.
        length: T.
        weights: for each token of each document, its weight as a target (its first is none); 1 by default.
        pad_id: what fills the rows.
    """
    _check_documents(documents, weights)
    placed: list[tuple[int, int, int, int, int]] = []  # row, column, document, its first and one past its last token
    rooms: list[tuple[int, int]] = []  # (free columns, row), sorted
    rows = 0
    for number, document in enumerate(documents):
        for start in range(0, len(document) - 1, length):
            stop = min(start + length + 1, len(document))
            inputs = stop - start - 1
            fit = bisect_left(rooms, (inputs, 0))
            if fit < len(rooms):
                free, row = rooms.pop(fit)
            else:
                free, row, rows = length, rows, rows + 1
            placed.append((row, length - free, number, start, stop))
            if free > inputs:
                insort(rooms, (free - inputs, row))

    batch = _empty_rows(rows, length, pad_id)
    positions, segments = np.zeros_like(batch.tokens), np.zeros_like(batch.tokens)
    count = [0] * rows
    for row, column, number, start, stop in placed:
        _place(
            batch, row, column, documents[number][start:stop], None if weights is None else weights[number][start:stop]
        )
        count[row] += 1
        columns = slice(column, column + stop - start - 1)
        positions[row, columns] = np.arange(stop - start - 1)
        segments[row, columns] = count[row]
    return replace(batch, positions=positions, segment_ids=segments)


def rows_of(shard: int, num_shards: int, rows: np.ndarray) -> np.ndarray:
    """Return the part of a whole batch's rows, or of what they are made from, that falls to one of the hosts."""
    if len(rows) % num_shards:
        below = len(rows) // num_shards * num_shards
        near = " or ".join(str(n) for n in (below, below + num_shards) if n)
        raise UsageError(f"batch_size {len(rows)} must be divisible by the {num_shards} hosts; try {near}")
    return np.split(rows, num_shards)[shard]


def _draw_starts(tokens: int, seed: int, step: int, batch_size: int, block_size: int) -> np.ndarray:
    _check_length(tokens, block_size)
    if min(seed, step) < 0:
        raise UsageError(f"seed {seed}, step {step}: must not be negative")
    # Philox is counter-based: any batch is drawn at once, without drawing those before it.
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return generator.integers(tokens - block_size, size=batch_size)


def _check_length(tokens: int, block_size: int) -> None:
    if tokens <= block_size:
        raise UsageError(
            f"{tokens} tokens of data are too few for block_size {block_size}, which needs {block_size + 1}"
        )


def _windows(data: TokenFile | np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    windows = data[starts[:, None] + np.arange(block_size + 1)].astype(np.int32)
    return Batch(windows[:, :-1], windows[:, 1:], np.ones((len(starts), block_size), np.float32))


def _empty_rows(rows: int, length: int, pad_id: int) -> Batch:
    def fill() -> np.ndarray:
        return np.full((rows, length), pad_id, np.int32)

    return Batch(fill(), fill(), np.zeros((rows, length), np.float32))


def _place(batch: Batch, row: int, column: int, document: Sequence[int], weights: Sequence[float] | None) -> None:
    columns = slice(column, column + len(document) - 1)
    batch.tokens[row, columns] = document[:-1]
    batch.targets[row, columns] = document[1:]
    batch.weights[row, columns] = 1.0 if weights is None else weights[1:]


def _check_documents(documents: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None) -> None:
    if not documents or min(map(len, documents)) < 2:
        raise UsageError("documents must be at least one, of at least 2 tokens each: one to read and one to predict")
    if weights is not None and [len(w) for w in weights] != [len(d) for d in documents]:
        raise UsageError("weights must be given for each token of each document")
