"""Batches are functions of (seed, step); shards add up; padding and packing lose nothing and mix nothing."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.batches import Batch, eval_batch, random_batch
from jaxgpt.data.packing import pack, pad_batch
from jaxgpt.errors import UsageError

DATA = np.arange(1000, dtype=np.uint16)

document = st.lists(st.integers(1, 99), min_size=2, max_size=30)
documents = st.lists(document, min_size=1, max_size=12)


@given(seed=st.integers(0, 2**63), step=st.integers(0, 2**40), length=st.integers(1, 999))
def test_rows_are_windows_of_the_data(seed: int, step: int, length: int):
    batch = random_batch(DATA, seed=seed, step=step, batch_size=4, block_size=length)
    assert batch.tokens.shape == (4, length) and batch.tokens.dtype == batch.targets.dtype == np.int32
    assert (batch.targets == batch.tokens + 1).all()
    assert (np.diff(batch.tokens) == 1).all()
    assert (batch.weights == 1).all() and batch.weights.dtype == np.float32


@pytest.mark.parametrize(
    "draw", [lambda **k: random_batch(DATA, seed=1, step=3, **k), lambda **k: eval_batch(DATA, index=3, count=5, **k)]
)
def test_shards_together_are_the_whole_batch(draw):
    whole = draw(batch_size=12, block_size=8)
    for shards in (1, 2, 3, 4, 6, 12):
        parts = [draw(batch_size=12, block_size=8, shard=i, num_shards=shards) for i in range(shards)]
        assert (np.concatenate([part.tokens for part in parts]) == whole.tokens).all()


def test_seed_and_step_each_change_the_batch():
    def starts(draw, **numbers: int) -> list[int]:
        return draw(DATA, batch_size=16, block_size=8, **numbers).tokens[:, 0].tolist()

    same = starts(random_batch, seed=1, step=2)
    assert same == starts(random_batch, seed=1, step=2)
    others = [
        starts(random_batch, seed=1, step=3),
        starts(random_batch, seed=2, step=2),
        starts(random_batch, seed=2, step=1),
    ]
    assert len({tuple(x) for x in [same, *others]}) == 4


def test_evaluation_covers_the_data_evenly():
    starts = np.concatenate(
        [eval_batch(DATA, index=i, count=4, batch_size=3, block_size=9).tokens[:, 0] for i in range(4)]
    )
    assert starts[0] == 0 and starts[-1] == len(DATA) - 10
    assert set(np.diff(starts)) <= {90, 91}


def test_every_window_can_be_drawn():
    tokens = random_batch(DATA[:10], seed=0, step=0, batch_size=1000, block_size=7).tokens
    assert set(tokens[:, 0]) == {0, 1, 2}


def test_ids_at_the_top_of_the_range_survive():
    for dtype, top in ((np.uint16, 65535), (np.uint32, 2**31 - 1)):
        batch = random_batch(np.full(9, top, dtype), seed=0, step=0, batch_size=2, block_size=8)
        assert (batch.tokens == top).all() and (batch.targets == top).all()


def test_bad_sizes_are_refused():
    with pytest.raises(UsageError, match="batch_size 10 .* 4 hosts; try 8 or 12"):
        random_batch(DATA, seed=0, step=0, batch_size=10, block_size=8, num_shards=4)
    with pytest.raises(UsageError, match="1000 tokens .* block_size 1000, which needs 1001"):
        random_batch(DATA, seed=0, step=0, batch_size=1, block_size=1000)
    with pytest.raises(UsageError, match="seed is -1; it must be a whole number from 0"):
        random_batch(DATA, seed=-1, step=0, batch_size=1, block_size=8)


@pytest.mark.usefixtures("unchecked_types")
def test_ids_that_do_not_fit_are_refused():
    for bad in (-1, 2**31):
        with pytest.raises(UsageError, match=f"data has the id {bad}; ids are from 0 to 2147483647"):
            random_batch(np.array([bad] * 9), seed=0, step=0, batch_size=1, block_size=8)
        for lay in (pad_batch, partial(pack, length=3)):
            with pytest.raises(UsageError, match=f"document 1 has the id {bad}; ids are from"):
                lay([[1, 2], [3, bad]])
    with pytest.raises(UsageError, match="data is an array of float64 of shape .*; it must be a TokenFile"):
        random_batch(np.ones(9), seed=0, step=0, batch_size=1, block_size=8)


def test_a_batch_is_a_tree():
    batch = random_batch(DATA, seed=0, step=0, batch_size=2, block_size=8)
    assert isinstance(jax.device_put(batch), Batch)
    assert len(jax.tree.leaves(batch)) == 3


def pairs(batch: Batch) -> list[tuple[int, int]]:
    """All (token, target) that count, in no order."""
    counted = np.asarray(batch.weights) > 0
    return sorted(zip(batch.tokens[counted].tolist(), batch.targets[counted].tolist(), strict=True))


@given(documents=documents)
def test_padding_is_known_by_length(documents: list[list[int]]):
    # 99 is also an id in the documents: they may end with the token that pads.
    batch = pad_batch(documents, length=40, pad_id=99)
    for row, text in enumerate(documents):
        n = len(text) - 1
        assert batch.tokens[row, :n].tolist() == text[:-1] and batch.targets[row, :n].tolist() == text[1:]
        assert batch.weights[row].tolist() == [1.0] * n + [0.0] * (40 - n)
    assert pad_batch(documents).tokens.shape[1] == max(map(len, documents)) - 1


@given(documents=documents, length=st.integers(1, 40))
def test_packing_keeps_each_pair_once_and_mixes_no_documents(documents: list[list[int]], length: int):
    batch = pack(documents, length=length)
    assert pairs(batch) == sorted((a, b) for text in documents for a, b in zip(text, text[1:], strict=False))
    assert batch.positions is not None and batch.segment_ids is not None
    assert ((np.asarray(batch.segment_ids) > 0) == (np.asarray(batch.weights) > 0)).all()
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            (at,) = np.nonzero(batch.segment_ids[row] == segment)
            assert at.tolist() == list(range(at[0], at[-1] + 1))
            assert batch.positions[row, at].tolist() == list(range(len(at)))
            found.append([*batch.tokens[row, at].tolist(), int(batch.targets[row, at[-1]])])
    parts = [text[i : i + length + 1] for text in documents for i in range(0, len(text) - 1, length)]
    assert sorted(found) == sorted(parts)


def test_packing_fills_rows():
    batch = pack([[1] * 5, [2] * 9, [3] * 5, [4] * 3, [5] * 7], length=8)
    assert len(batch.tokens) == 3 and (batch.weights == 1).all()


@pytest.mark.parametrize("lay", [pad_batch, partial(pack, length=3)])
def test_weights_stand_for_targets(lay):
    batch = lay([[1, 2, 3, 4], [5, 6]], weights=[[0.0, 0.0, 1.0, 1.0], [0.0, 0.5]])
    assert batch.weights.tolist() == [[0, 1, 1], [0.5, 0, 0]]
    with pytest.raises(UsageError, match="weights"):
        lay([[1, 2]], weights=[[1.0]])


def test_documents_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="5 tokens does not fit into rows of length 3"):
        pad_batch([[1] * 5], length=3)
    for none in ([], [[1]]):
        with pytest.raises(UsageError, match="at least 2 tokens"):
            pack(none, length=4)
