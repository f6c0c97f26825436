"""Each example comes once an epoch, after a resume too and however many hosts there are; rows hold what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.chat.encoded import EncodedPair, LabelledIds
from jaxgpt.chat.examples import (
    conversation_batch,
    epoch_rows,
    eval_rows,
    eval_sample,
    labelled_batch,
    packed_conversations,
    pairs_batch,
    take_rows,
)
from jaxgpt.chat.template import Encoded
from jaxgpt.data.batches import Batch
from jaxgpt.data.packing import pad_batch
from jaxgpt.errors import UsageError


@given(count=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**32 - 1), first=st.integers(0, 99))
def test_each_example_comes_once_an_epoch(count: int, size: int, seed: int, first: int):
    steps = range(first, first + 2 + 3 * count // size)
    rows = np.concatenate([epoch_rows(count, seed=seed, step=step, batch_size=size) for step in steps])
    begin = -(first * size) % count  # where an epoch begins
    epochs = [rows[at : at + count] for at in range(begin, len(rows) - count + 1, count)]
    assert epochs and all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_epochs_seeds_and_nothing_else_change_the_order():
    def epoch(seed: int, number: int, size: int = 10) -> list[int]:
        steps = range(number * 100 // size, (number + 1) * 100 // size)
        return np.concatenate([epoch_rows(100, seed=seed, step=step, batch_size=size) for step in steps]).tolist()

    assert epoch(1, 0) == epoch(1, 0, size=25)
    assert len({tuple(epoch(seed, number)) for seed in (1, 2) for number in (0, 1, 7)}) == 6
    assert epoch(1, 0) != list(range(100))


@pytest.mark.parametrize(
    "draw", [lambda **k: epoch_rows(7, seed=3, step=5, **k), lambda **k: eval_rows(7, index=0, **k)]
)
def test_shards_together_are_the_whole_batch(draw):
    whole = draw(batch_size=12).tolist()
    for shards in (1, 2, 3, 4, 6, 12):
        parts = [draw(batch_size=12, shard=i, num_shards=shards) for i in range(shards)]
        assert np.concatenate(parts).tolist() == whole and {len(part) for part in parts} == {12 // shards}
    with pytest.raises(UsageError, match="batch_size 12 must be divisible by the 5 hosts; try 10 or 15"):
        draw(batch_size=12, shard=0, num_shards=5)


def test_evaluation_walks_through_all_once():
    rows = [eval_rows(7, index=index, batch_size=3).tolist() for index in range(3)]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


@given(count=st.integers(1, 300), size=st.integers(1, 400))
def test_an_evaluations_sample_is_spread_and_takes_none_more_often_than_another(count: int, size: int):
    sample = eval_sample(count, size)
    assert len(sample) == size and (eval_sample(count, size) == sample).all()
    times = np.bincount(sample, minlength=count)
    assert len(times) == count and times.max() - times.min() <= 1
    if size <= count:
        assert (np.abs(sample - np.arange(size) * count / size) <= count / size + 1).all()


def test_an_evaluation_of_fewer_batches_is_a_sample_of_all():
    rows = np.concatenate([eval_rows(100, index=index, batch_size=4, batches=3) for index in range(3)])
    assert rows.tolist() == eval_sample(100, 12).tolist() and rows[-1] > 90
    assert eval_rows(7, index=2, batch_size=3, batches=9).tolist() == [6, -1, -1]


def test_no_examples_and_negative_numbers_are_refused():
    for count, seed, step in ((0, 1, 1), (1, -1, 1), (1, 1, -1)):
        with pytest.raises(UsageError, match=f"{count} examples, seed {seed}, step {step}"):
            epoch_rows(count, seed=seed, step=step, batch_size=2)


def test_texts_are_padded_and_their_last_token_known():
    texts = [LabelledIds((5, 6, 7), 1), LabelledIds((0,), 0)]  # 0 pads, and is a token
    batch = labelled_batch(texts, np.array([1, 0, -1]), length=4, pad_id=0)
    assert np.asarray(batch.tokens)[:2].tolist() == [[0, 0, 0, 0], [5, 6, 7, 0]]
    assert np.asarray(batch.last)[:2].tolist() == [0, 2] and np.asarray(batch.labels)[:2].tolist() == [0, 1]
    assert np.asarray(batch.weights).tolist() == [1, 1, 0]


def answer(ids: tuple[int, ...], prompt: int) -> Encoded:
    return Encoded(ids, (0.0,) * prompt + (1.0,) * (len(ids) - prompt))


def test_pairs_have_their_last_token_as_an_input():
    pairs = [
        EncodedPair(answer((1, 2, 3, 4), 2), answer((1, 2, 5), 2), 0.5),
        EncodedPair(answer((6, 7), 1), answer((6, 8, 9), 1), 0.0),
    ]
    reference = np.array([[-1, -2], [-3, -4]], np.float32)
    batch = pairs_batch(pairs, np.array([1, 0, -1]), length=4, pad_id=99, reference=reference)
    first, second, filling = (np.asarray(array) for array in batch.tokens)
    assert first.tolist() == [[6, 7, 99, 99], [6, 8, 9, 99]] and second.tolist() == [[1, 2, 3, 4], [1, 2, 5, 99]]
    assert np.asarray(batch.targets)[1].tolist() == [[2, 3, 4, 99], [2, 5, 99, 99]]
    assert np.asarray(batch.weights)[1].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert np.asarray(batch.last)[:2].tolist() == [[1, 2], [3, 2]] and filling.shape == (2, 4)
    assert np.asarray(batch.margin)[:2].tolist() == [0, 0.5] and not np.asarray(batch.weights)[2].any()
    assert batch.reference is not None and np.asarray(batch.reference)[:2].tolist() == [[-3, -4], [-1, -2]]
    assert pairs_batch(pairs, np.array([0]), length=4, pad_id=0).reference is None


# For each token its id and its weight.
drawn_tokens = st.lists(st.tuples(st.integers(1, 99), st.sampled_from([0.0, 1.0])), min_size=2, max_size=9)


def learnt(batch: Batch) -> list[tuple[int, int]]:
    """All (token, target) to learn, in no order."""
    counted = np.asarray(batch.weights) > 0
    return sorted(zip(batch.tokens[counted].tolist(), batch.targets[counted].tolist(), strict=True))


@given(drawn=st.lists(drawn_tokens, min_size=1, max_size=9))
def test_packed_or_not_the_same_is_learnt(drawn: list[list[tuple[int, float]]]):
    conversations = [Encoded(*map(tuple, zip(*tokens, strict=True))) for tokens in drawn]
    rows = np.arange(len(conversations))
    padded = conversation_batch(conversations, rows, length=8, pad_id=0)
    packed = packed_conversations(conversations, length=8, pad_id=0)
    expected = [
        pair
        for talk in conversations
        for *pair, weight in zip(talk.ids, talk.ids[1:], talk.weights[1:], strict=False)
        if weight
    ]
    assert learnt(padded) == learnt(packed) == sorted(map(tuple, expected))
    assert padded.tokens.shape[1] == packed.tokens.shape[1] == 8 and len(packed.tokens) <= len(conversations)
    assert (np.asarray(packed.segment_ids).max(1) >= 1).all()


def test_rows_are_taken_and_filled_up():
    talks = [Encoded((i, i, i), (0.0, 1.0, 1.0)) for i in range(1, 6)]
    packed = packed_conversations(talks, length=4, pad_id=0)
    assert len(packed.tokens) == 3
    taken = take_rows(packed, np.array([2, 0, -1]))
    assert (taken.tokens == packed.tokens[[2, 0, 2]]).all() and (taken.positions == packed.positions[[2, 0, 2]]).all()
    assert (taken.weights[:2] == packed.weights[[2, 0]]).all() and not np.asarray(taken.weights)[2].any()
    batch = conversation_batch(talks, np.array([3, -1]), length=4, pad_id=0)
    assert (batch.tokens[0] == pad_batch([talks[3].ids], length=4).tokens[0]).all()
    assert batch.weights.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    plain = take_rows(pad_batch([[1, 2], [3, 4]]), np.array([1]))
    assert plain.tokens.tolist() == [[3]] and plain.positions is None
