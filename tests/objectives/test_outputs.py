"""What objectives read off the model: log-probabilities in f32, and scores of the last token only."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.outputs import last_scores, sequence_log_probs, token_log_probs

TOKENS = jnp.arange(24).reshape(3, 8) % 17
LAST = jnp.array([7, 0, 3])


@pytest.mark.parametrize("scale", [1, 1e4])
def test_token_log_probs_are_log_softmax_also_of_large_logits(scale: float):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32) * np.float32(scale)
    targets = np.array([[0, 1, 2], [3, 4, 0]], np.int32)
    exact = logits.astype(np.float64)
    top = exact.max(-1, keepdims=True)
    expected = exact - top - np.log(np.exp(exact - top).sum(-1, keepdims=True))
    found = token_log_probs(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, np.take_along_axis(expected, targets[..., None], -1)[..., 0], rtol=1e-5)


def test_token_log_probs_of_bf16_logits_are_f32():
    logits = jnp.asarray([[[1.0, 2.0, 3.0]]], jnp.bfloat16)
    found = token_log_probs(logits, jnp.array([[0]]))
    np.testing.assert_allclose(found, 1 - np.log(np.exp([1, 2, 3]).sum()), rtol=1e-6)
    assert found.dtype == jnp.float32


def test_sequence_log_probs_are_weighted_sums(tiny):
    weights = np.random.default_rng(0).choice([0, 0.5, 1], size=TOKENS.shape).astype(np.float32)
    targets = TOKENS[:, ::-1]
    logits, _ = jax.jit(tiny.model.apply)({"params": tiny.params}, TOKENS)
    expected = (np.asarray(token_log_probs(logits, targets)) * weights).sum(-1)
    found = jax.jit(partial(sequence_log_probs, tiny.model))(tiny.params, TOKENS, targets, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scores_are_those_of_the_last_token_and_no_other_goes_through_the_head(tiny):
    model = GPT(replace(tiny.config, labels=("a", "b", "c", "d", "e")))
    params = {**tiny.params, "score": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)}
    hidden, _ = jax.jit(partial(model.apply, method="hidden"))({"params": params}, TOKENS)
    expected = np.asarray(hidden)[np.arange(3), LAST] @ params["score"].T
    found = jax.jit(partial(last_scores, model))(params, TOKENS, LAST)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    program = str(jax.make_jaxpr(partial(last_scores, model))(params, TOKENS, LAST))
    assert "[3,1,5]" in program and "[3,8,5]" not in program


def test_a_key_drops(tiny):
    log_probs = jax.jit(partial(sequence_log_probs, tiny.model, tiny.params, TOKENS, TOKENS, jnp.ones(TOKENS.shape)))
    found = [log_probs(key)[0] for key in (None, jax.random.key(0), jax.random.key(1))]
    assert len(set(map(float, found))) == 3
