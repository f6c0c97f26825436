"""Examples: a finite data set's batches as a function of (seed, step), for all that follows pretraining.

As in `batches`, nothing is iterated: an epoch is a permutation that is drawn anew wherever it is needed, so a resumed
run goes on with the rows that an uninterrupted one would have had.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import flax.struct
import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.chat.encoded import EncodedPair, LabelledIds
from jaxgpt.chat.template import Encoded
from jaxgpt.data.batches import Batch, rows_of
from jaxgpt.data.packing import pack, pad_batch
from jaxgpt.errors import UsageError

Rows = Int[np.ndarray, " B"]
"""Numbers of examples; -1 fills a batch up with a row of weight 0."""


@flax.struct.dataclass
class Labelled:
    """Texts with one label each: numpy arrays as made here, jax arrays once on a device.

    Attributes:
        tokens: (B, T) int32, input ids, padded on the right.
        last: (B,) int32, column of each row's last real token.
        labels: (B,) int32, number of each text's label.
        weights: (B,) f32, each text's weight in the loss; 0 leaves it out.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    last: Int[Array | np.ndarray, " B"]
    labels: Int[Array | np.ndarray, " B"]
    weights: Float[Array | np.ndarray, " B"]


@flax.struct.dataclass
class Pairs:
    """Two answers to each prompt, 0 the chosen one and 1 the rejected, each in a row of its own behind the prompt.

    The pair is the leading axis, so that accumulation and sharding split pairs and never the two halves of one. All
    pairs weigh the same in the loss, but for those whose `weights` are 0 throughout: these only fill a batch up, and
    count for nothing.

    Attributes:
        tokens: (B, 2, T) int32, prompt and answer, padded on the right.
        targets: (B, 2, T) int32, the id that follows each.
        weights: (B, 2, T) f32, 1 where the target belongs to the answer, else 0.
        last: (B, 2) int32, column of the answer's last input: of its last token, which has no target.
        margin: (B,) f32, by how much the chosen answer is to be better; 0 where the data does not say.
        reference: (B, 2) f32, log-probability of each answer under the reference model, summed over its tokens;
            None where there is no reference.
    """

    tokens: Int[Array | np.ndarray, "B 2 T"]
    targets: Int[Array | np.ndarray, "B 2 T"]
    weights: Float[Array | np.ndarray, "B 2 T"]
    last: Int[Array | np.ndarray, "B 2"]
    margin: Float[Array | np.ndarray, " B"]
    reference: Float[Array | np.ndarray, "B 2"] | None = None


def epoch_rows(
    count: int, *, seed: int, step: int, batch_size: int, shard: int = 0, num_shards: int = 1
) -> Int[np.ndarray, " B"]:
    """Return which of `count` examples a step is to take: each once in an epoch, in an order of the epoch's own.

    Where an epoch ends within a batch, the rest of the batch is the next one's beginning.

    Args:
        count: number of examples.
        seed: of the run.
        step: which batch.
        batch_size: rows of all shards together.
        shard: which part of the rows to return, one of `num_shards`.
        num_shards: number of hosts that feed themselves; must divide `batch_size`.

    Returns:
        The numbers of batch_size / num_shards examples.
    """
    if count < 1 or min(seed, step) < 0:
        raise UsageError(f"{count} examples, seed {seed}, step {step}: must be some, and none of them negative")
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    rows = [_permutation(count, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    return rows_of(shard, num_shards, np.concatenate(rows))


def eval_rows(
    count: int,
    *,
    index: int,
    batch_size: int,
    batches: int | None = None,
    shard: int = 0,
    num_shards: int = 1,
) -> Rows:
    """Return evaluation batch number `index` of ⌈count / batch_size⌉, which are all examples once, in order.

    With fewer `batches` they are `eval_sample`, in order. The last batch is filled up with -1. Other arguments are as
    for `epoch_rows`.
    """
    sample = eval_sample(count, count if batches is None else min(count, batches * batch_size))
    rows = np.full(batch_size, -1)
    here = sample[index * batch_size : (index + 1) * batch_size]
    rows[: len(here)] = here
    return rows_of(shard, num_shards, rows)


def eval_sample(count: int, size: int) -> Int[np.ndarray, " size"]:
    """Return the numbers of `size` of `count` examples, always the same, in order: one from each of equal parts.

    So a file that is sorted, by label say, is represented as a whole. Beyond `count` all come again, as often as each
    other but for one.
    """
    rounds, rest = divmod(size, count)
    edges = np.arange(rest + 1) * count // max(rest, 1)
    drawn = np.random.Generator(np.random.Philox(0)).integers(edges[:-1], edges[1:])
    return np.concatenate([np.tile(np.arange(count), rounds), drawn])


def labelled_batch(texts: Sequence[LabelledIds], rows: Rows, *, length: int, pad_id: int) -> Labelled:
    """Lay the texts with the numbers `rows` out, each of at most `length` tokens, which is T."""
    tokens, last = _lay([texts[row].ids for row in rows], length, pad_id)
    labels = np.array([texts[row].label for row in rows], np.int32)
    return Labelled(tokens, last, labels, (rows >= 0).astype(np.float32))


def pairs_batch(
    pairs: Sequence[EncodedPair],
    rows: Rows,
    *,
    length: int,
    pad_id: int,
    reference: Float[np.ndarray, "N 2"] | None = None,
) -> Pairs:
    """Lay the pairs with the numbers `rows` out, each answer with its prompt of at most `length` tokens, which is T.

    Args:
        pairs: all.
        rows: which.
        length: T.
        pad_id: what fills the rows.
        reference: `Pairs.reference` of all pairs, where it is known.
    """
    answers = [answer for row in rows for answer in (pairs[row].chosen, pairs[row].rejected)]
    tokens, last = _lay([answer.ids for answer in answers], length, pad_id)
    # Targets and weights as `pad_batch` has them; but here the last token is an input too, to which a score belongs.
    following = pad_batch(
        [answer.ids for answer in answers],
        length=length,
        weights=[answer.weights for answer in answers],
        pad_id=pad_id,
    )
    real = rows >= 0
    return Pairs(
        tokens.reshape(-1, 2, length),
        following.targets.reshape(-1, 2, length),
        following.weights.reshape(-1, 2, length) * real[:, None, None].astype(np.float32),
        last.reshape(-1, 2),
        np.array([pairs[row].margin for row in rows], np.float32),
        None if reference is None else reference[rows],
    )


def conversation_batch(conversations: Sequence[Encoded], rows: Rows, *, length: int, pad_id: int) -> Batch:
    """Lay the conversations with the numbers `rows` out, one a row of `length`, which is T."""
    batch = pad_batch(
        [conversations[row].ids for row in rows],
        length=length,
        weights=[conversations[row].weights for row in rows],
        pad_id=pad_id,
    )
    return _without_filling(batch, rows)


def packed_conversations(conversations: Sequence[Encoded], *, length: int, pad_id: int) -> Batch:
    """Lay all conversations out, as many in a row of `length` as it has room for; `take_rows` draws from the rows."""
    return pack(
        [conversation.ids for conversation in conversations],
        length=length,
        weights=[conversation.weights for conversation in conversations],
        pad_id=pad_id,
    )


def conversation_rows(conversations: Sequence[Encoded], *, length: int, packing: bool) -> Batch:
    """Lay all conversations out in rows of `length`, as many in a row as it has room for or one in each."""
    if packing:
        return packed_conversations(conversations, length=length, pad_id=0)
    return conversation_batch(conversations, np.arange(len(conversations)), length=length, pad_id=0)


def take_rows(batch: Batch, rows: Rows) -> Batch:
    """Return the rows of `batch` with the numbers `rows`."""
    return _without_filling(jax.tree.map(lambda array: array[rows], batch), rows)


@functools.lru_cache(maxsize=2)  # of the epochs that a batch is usually in
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def _lay(documents: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of `length` with all tokens of a document each, and the column of each one's last."""
    tokens = np.full((len(documents), length), pad_id, np.int32)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = document
    return tokens, np.array([len(document) - 1 for document in documents], np.int32)


def _without_filling(batch: Batch, rows: np.ndarray) -> Batch:
    return replace(batch, weights=batch.weights * (rows >= 0)[:, None].astype(np.float32))
