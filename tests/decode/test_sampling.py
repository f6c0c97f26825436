import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jaxgpt.decode.sampling import choose, filter_logits, penalize
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.errors import UsageError


def random_logits(vocab_size: int = 501) -> np.ndarray:
    return 3 * np.random.default_rng(0).standard_normal((5, vocab_size), np.float32)


@pytest.mark.parametrize("temperature", [0.7])
@pytest.mark.parametrize("top_k", [None, 1, 40, 10_000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.9])
@pytest.mark.parametrize("min_p", [None, 0.05])
def test_filters_keep_what_hugging_faces_keep(temperature, top_k, top_p, min_p):
    logits = random_logits()
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    theirs += [TopKLogitsWarper(top_k)] if top_k is not None else []
    theirs += [TopPLogitsWarper(top_p)] if top_p is not None else []
    theirs += [MinPLogitsWarper(min_p)] if min_p is not None else []
    expected = theirs(torch.zeros(5, 1, dtype=torch.long), torch.tensor(logits)).numpy()
    ours = filter_logits(Sampling(temperature, top_k, top_p, min_p), jnp.asarray(logits))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_repetition_penalty_is_hugging_faces_and_passes_over_padding():
    logits = random_logits(50)
    tokens = np.random.default_rng(1).integers(0, 50, (5, 9))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(tokens), torch.tensor(logits)).numpy()
    padded = jnp.pad(jnp.asarray(tokens, jnp.int32), ((0, 0), (3, 2)), constant_values=33)
    present = jnp.pad(jnp.ones((5, 9), bool), ((0, 0), (3, 2)))
    np.testing.assert_allclose(penalize(jnp.asarray(logits), padded, present, 1.7), expected, rtol=1e-6)


def test_equal_logits_are_kept_together():
    logits = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]])
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.1), Sampling(1.0, min_p=0.9)):
        assert jnp.isfinite(filter_logits(sampling, logits)).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 3, 0.5, 0.1), Sampling(1e-30, 3, 1e-9, 1.0)]
)
@pytest.mark.parametrize("rest", [-math.inf, -3e38, 0.0])
def test_the_likeliest_token_always_stays(sampling, rest):
    logits = jnp.full((1, 20), rest).at[0, 7].set(50.0)
    tokens, present = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), bool)
    for seed in range(3):
        chosen = choose(sampling, logits, tokens, present, jax.random.split(jax.random.key(seed), 1))
        assert chosen.tolist() == [7]


@given(exponent=st.floats(-400, -9), top_p=st.floats(5e-324, 1), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_what_is_as_cold_or_as_narrow_as_can_be_is_greedy(exponent, top_p, seed):
    """Logits differ by 1e-6 at least, so from a temperature of 1e-9 down the likeliest is all but certain."""
    values = 30 * np.random.default_rng(seed).standard_normal(20).round(6).astype(np.float32)
    logits, tokens, present = jnp.asarray(values)[None], jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), bool)
    keys = jax.random.split(jax.random.key(seed), 1)
    cold, narrow = Sampling(10.0**exponent), Sampling(1.0, top_p=min(top_p, 1e-9))
    for sampling in (cold, narrow):
        assert choose(sampling, logits, tokens, present, keys) == choose(Sampling(), logits, tokens, present, keys)
    hot = filter_logits(Sampling(10.0 ** min(-exponent, 308)), logits)
    assert hot.max() - hot.min() < 1e-6, "and what is as hot, all alike"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 3, 0.5, 0.1)])
def test_a_row_without_any_likely_token_still_gives_one(sampling):
    logits = jnp.full((2, 20), -jnp.inf)
    tokens, present = jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4), bool)
    chosen = choose(sampling, logits, tokens, present, jax.random.split(jax.random.key(0), 2))
    assert ((chosen >= 0) & (chosen < 20)).all()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1.0, math.nan, math.inf, "1", None, True]),
        ("top_k", [0, -3, 2.0, "3"]),
        ("top_p", [0.0, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.nan, math.inf]),
        ("vocab_size", [0]),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(UsageError, match=f"^{name} is {value!r}; it must be "):
            Sampling(**{name: value})
