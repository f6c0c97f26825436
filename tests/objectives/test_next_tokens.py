"""Objectives: sums that are exact whatever the padding, the packing and the split into batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.data.batches import Batch
from jaxgpt.data.packing import pack, pad_batch
from jaxgpt.objectives.base import Sums
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.train.loop import make_evaluate

DOCUMENTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15]]


@pytest.fixture(scope="module")
def objective(tiny):
    return jax.jit(pretrain(tiny.model))


def test_pretrain_is_weighted_cross_entropy(tiny, objective):
    generator = np.random.default_rng(0)
    tokens, targets = generator.integers(17, size=(2, 4, 8), dtype=np.int32)
    weights = generator.choice([0, 0.5, 2], size=(4, 8)).astype(np.float32)
    logits, _ = jax.jit(tiny.model.apply)({"params": tiny.params}, tokens)
    exact = np.asarray(logits, np.float64)
    losses = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    sums = objective(tiny.params, Batch(tokens, targets, weights), None)
    np.testing.assert_allclose(sums.loss, (losses * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.weight, weights.sum(), rtol=1e-6)


def test_packed_is_padded(tiny, objective):
    padded, packed = pad_batch(DOCUMENTS, length=8), pack(DOCUMENTS, length=8)
    assert len(packed.tokens) < len(padded.tokens)
    one, other = (objective(tiny.params, batch, None) for batch in (padded, packed))
    assert one.weight == other.weight == sum(len(document) - 1 for document in DOCUMENTS)
    np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)


def test_what_padding_holds_does_not_matter(tiny, objective):
    one, other = (objective(tiny.params, pad_batch(DOCUMENTS, length=8, pad_id=pad), None) for pad in (0, 16))
    assert one.loss == other.loss


def test_without_a_key_nothing_is_dropped(tiny, objective):
    batch = tiny.batches(0)
    kept, again = (float(objective(tiny.params, batch, None).loss) for _ in range(2))
    dropped = {float(objective(tiny.params, batch, jax.random.key(seed)).loss) for seed in (0, 1)}
    assert kept == again and len(dropped | {kept}) == 3


def test_evaluation_is_the_mean_over_all_weights_of_all_batches():
    def objective(params, batch, key):
        assert key is None
        return Sums((batch.weights * params).sum() * batch.tokens[0, 0], batch.weights.sum())

    batches = [Batch(*np.full((2, 1, 1), n, np.int32), np.full((1, 1), n, np.float32)) for n in (1, 2, 5)]
    # Losses 1, 2, 5 with weights 1, 2, 5; a mean of means would be 8 / 3.
    assert make_evaluate(objective)(jnp.ones(()), batches) == {"loss": pytest.approx(30 / 8)}
