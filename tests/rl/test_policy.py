"""PPO's objective against plain numpy; blind to what lies outside the responses, and without dropout."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxgpt.model.gpt import GPT
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.experience import Experience, minibatches
from jaxgpt.rl.policy import policy_losses, ppo, value_losses

CONFIG = PPOConfig(entropy_coef=0.01, temperature=0.8, clip=0.2, value_clip=0.3, value_coef=0.5)
WEIGHTS = np.asarray([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]], np.float32)


def draw_experience() -> Experience:
    """Return experience that is no policy's, so that ratios and values are clipped at some tokens and not at others."""
    generator = np.random.default_rng(0)
    tokens, targets = generator.integers(8, size=(2, *WEIGHTS.shape), dtype=np.int32)
    numbers = generator.normal(size=(5, *WEIGHTS.shape)).astype(np.float32)
    return Experience(tokens, targets, WEIGHTS, numbers[0] * 0.3 - 2, numbers[1] * 0.3 - 2, *numbers[2:])


@pytest.fixture(scope="module")
def params(rewarded):
    return jax.tree.map(jnp.asarray, rewarded.params)


@pytest.fixture(scope="module")
def values_and_gradients(rewarded):
    """The objective and its gradient, compiled; dropout would need the key."""
    objective = ppo(rewarded.model, CONFIG, vocab_size=8)

    def both(params, experience):
        def loss(params):
            sums = objective(params, experience, jax.random.key(0))
            return sums.loss, sums

        return jax.grad(loss, has_aux=True)(params)

    return jax.jit(both)


@pytest.fixture(scope="module")
def found(params, values_and_gradients):
    return values_and_gradients(params, draw_experience())


def test_sums_are_those_of_plain_numpy(rewarded, params, found):
    model, experience = rewarded.model, draw_experience()
    logits, _ = model.apply({"params": params}, jnp.asarray(experience.tokens))
    hidden, _ = model.apply({"params": params}, jnp.asarray(experience.tokens), method="hidden")
    logits = np.asarray(logits, np.float64)[..., :8] / 0.8
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs = np.take_along_axis(log_p, experience.targets[..., None], -1)[..., 0]
    ratio, entropy = np.exp(log_probs - experience.old_log_probs), -(np.exp(log_p) * log_p).sum(-1)
    unclipped, clipped = ratio * experience.advantages, np.clip(ratio, 0.8, 1.2) * experience.advantages
    values = np.asarray(hidden, np.float64) @ params["score"][0]
    moved = np.clip(values, experience.old_values - 0.3, experience.old_values + 0.3)
    value = 0.5 * np.maximum((values - experience.returns) ** 2, (moved - experience.returns) ** 2)
    wanted = {
        "policy_loss": -np.minimum(unclipped, clipped),
        "clip_fraction": clipped < unclipped,
        "approx_kl": ratio - 1 - np.log(ratio),
        "value_loss": value,
        "entropy": entropy,
    }
    _, sums = found
    assert sums.weight == WEIGHTS.sum() and sums.metrics.keys() == wanted.keys()
    assert 0 < (wanted["clip_fraction"] * WEIGHTS).sum() < WEIGHTS.sum()
    for name, each in wanted.items():
        np.testing.assert_allclose(sums.metrics[name][0], (each * WEIGHTS).sum(), rtol=1e-4, err_msg=name)
        assert sums.metrics[name][1] == WEIGHTS.sum()
    loss = wanted["policy_loss"] + 0.5 * value - 0.01 * entropy
    np.testing.assert_allclose(sums.loss, (loss * WEIGHTS).sum(), rtol=1e-4)


@pytest.mark.parametrize("garbage", [1e9, np.nan, -np.inf])
def test_garbage_outside_the_responses_changes_nothing(params, values_and_gradients, found, garbage):
    """Bit for bit, the gradient too. The last row's tokens behind its response are others as well."""
    clean = draw_experience()
    names = ("old_log_probs", "reference_log_probs", "advantages", "old_values", "returns")
    dirty = clean.replace(**{name: np.where(WEIGHTS > 0, getattr(clean, name), garbage) for name in names})
    dirty = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, dirty)
    dirty.tokens[2, 1:] = 5
    dirty.targets[0, 4:] = 0
    assert not np.array_equal(dirty.tokens, draw_experience().tokens)
    for one, other in zip(jax.tree.leaves(values_and_gradients(params, dirty)), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_gradient_reaches_policy_and_value_head(found):
    for path, gradient in flatten_dict(found[0]).items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    padding = found[0]["wte"]["embedding"][8]
    assert not np.asarray(padding).any(), "ids that only pad the table are no choices"


def test_grpo_has_no_value_and_its_divergence_in_the_loss(rewarded, params):
    model = GPT(replace(rewarded.model.config, labels=None))
    experience = draw_experience().replace(old_values=None, returns=None)
    config = PPOConfig(algorithm="grpo", kl_coef=0.3)
    with_kl, without = (
        jax.jit(ppo(model, each))(params, experience, None) for each in (config, replace(config, kl_coef=0.0))
    )
    assert "value_loss" not in with_kl.metrics
    logits, _ = model.apply({"params": params}, jnp.asarray(experience.tokens))
    log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), experience.targets[..., None], -1)[..., 0]
    log_ratio = experience.reference_log_probs - log_probs
    wanted = 0.3 * ((np.exp(log_ratio) - 1 - log_ratio) * WEIGHTS).sum()
    np.testing.assert_allclose(with_kl.loss - without.loss, wanted, rtol=1e-4)
    np.testing.assert_allclose(without.loss, without.metrics["policy_loss"][0], rtol=1e-6)


def test_a_token_that_moved_too_far_has_no_gradient_and_one_that_must_come_back_has():
    old, advantages = jnp.zeros((1, 4)), jnp.asarray([[1.0, -1.0, 1.0, -1.0]])
    log_probs = jnp.asarray([[0.5, -0.5, -0.5, 0.5]])
    gradient = jax.grad(lambda x: policy_losses(x, old, advantages, clip=0.2)[0].sum())(log_probs)
    np.testing.assert_allclose(gradient, [[0, 0, -np.exp(-0.5), np.exp(0.5)]], rtol=1e-6)
    np.testing.assert_array_equal(policy_losses(log_probs, old, advantages, clip=0.2)[1], [[1, 1, 0, 0]])


def test_values_are_held_only_where_there_is_a_clip():
    values, old, returns = (jnp.asarray([[x]]) for x in (2.0, 0.0, 3.0))
    assert value_losses(values, old, returns, clip=None) == 0.5
    assert value_losses(values, old, returns, clip=0.5) == 0.5 * 2.5**2


def test_each_epoch_has_all_rows_once_in_an_order_of_its_own(rewarded):
    config = replace(rewarded.config, epochs=3, batch_size=2, rollout_size=8)
    column = np.zeros((8, 2), np.float32)
    experience = Experience(np.arange(16, dtype=np.int32).reshape(8, 2), column.astype(np.int32), *[column] * 6)

    def rows(seed: int, iteration: int) -> list[int]:
        parts = list(minibatches(experience, config, seed=seed, iteration=iteration))
        assert [part.tokens.shape for part in parts] == [(2, 2)] * 12
        return [int(row[0]) // 2 for part in parts for row in part.tokens]

    order = rows(0, 0)
    assert order == rows(0, 0)
    orders = {tuple(found[8 * n : 8 * n + 8]) for found in (order, rows(0, 1), rows(1, 0)) for n in range(3)}
    assert len(orders) == 9 and all(sorted(one) == list(range(8)) for one in orders)
