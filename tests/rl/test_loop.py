"""The loop of iterations: on-policy when it begins, exact after a stop, and it learns what is rewarded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.rl.experience import minibatches
from jaxgpt.rl.loop import run_ppo
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.manifest import Progress


def iterations(rewarded, state, until, **options):
    return run_ppo(rewarded.step, state, rewarded.rollouts(), rewarded.config, seed=0, until=until, **options)


@pytest.fixture(scope="module")
def whole(rewarded):
    """A run of 20 iterations: for each the number, a copy of the state, and the metrics."""
    return [
        (done, jax.device_get(state), metrics) for done, state, metrics in iterations(rewarded, rewarded.begin(), 20)
    ]


def test_the_first_update_of_an_iteration_is_made_by_the_policy_that_responded(rewarded, whole):
    """Where masks, positions or temperature don't fit together, it is not; 3 iterations on, weights are not small."""
    state = jax.tree.map(jnp.asarray, whole[2][1])
    experience = rewarded.rollouts()(state.whole, 0.1, 3).experience
    first, second = list(minibatches(experience, rewarded.config, seed=0, iteration=3))[:2]
    state, metrics = rewarded.step(state, first)
    found = {name: float(value) for name, value in metrics.metrics.items()}
    assert found["clip_fraction"] == 0
    assert abs(found["approx_kl"]) < 1e-8, "half the mean square of old - new"
    # With a ratio of 1 the loss is the mean advantage, with its sign.
    weights = first.weights
    np.testing.assert_allclose(found["policy_loss"], -(first.advantages * weights).sum() / weights.sum(), atol=1e-5)
    _, metrics = rewarded.step(state, second)
    assert metrics.metrics["approx_kl"] > 1e-5


def test_iterations_count_updates_and_report_both_kinds_of_metrics(rewarded, whole):
    assert [(done, int(state.step)) for done, state, _ in whole[:3]] == [(1, 4), (2, 8), (3, 12)]
    wanted = (
        "approx_kl clip_fraction ended entropy explained_variance kl kl_coef policy_loss response_length reward score"
    )
    for _, _, metrics in whole:
        assert set(metrics.metrics) == {*wanted.split(), "value_loss"}
        assert all(np.isfinite(value) for value in metrics.metrics.values())
    assert int(whole[1][2].updates) == 7, "of the last update: what the schedule was asked for"


def test_it_learns_what_is_rewarded(whole):
    scores = [float(metrics.metrics["score"]) for *_, metrics in whole]
    assert scores[0] < 0.25 and np.mean(scores[-3:]) > 0.7


def test_the_coefficient_follows_the_divergence(rewarded, whole):
    coefficient = 0.05
    for _, state, metrics in whole:
        np.testing.assert_allclose(metrics.metrics["kl_coef"], coefficient, rtol=1e-5)
        error = np.clip(float(metrics.metrics["kl"]) / 4 - 1, -0.2, 0.2)
        coefficient *= 1 + error * 32 / 400
        np.testing.assert_allclose(state.carried, coefficient, rtol=1e-5)


def test_resumed_is_uninterrupted_bit_for_bit(rewarded, whole, tmp_path):
    """With a coefficient that adapts and Adam's moments."""
    checkpoints = Checkpoints(tmp_path)
    *_, (_, state, _) = iterations(rewarded, rewarded.begin(), 2)
    checkpoints.save(state, Progress(8))
    checkpoints.wait()
    # Laid out as the others are, so that no program is compiled again.
    restored = jax.tree.map(jnp.asarray, jax.device_get(checkpoints.restore(rewarded.abstract, 8)))
    rest = list(iterations(rewarded, restored, 4))
    assert [done for done, *_ in rest] == [3, 4]
    for one, other in zip(jax.tree.leaves(rest[-1]), jax.tree.leaves(whole[3]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_reference_is_not_moved(rewarded, whole):
    before = jax.tree.map(np.copy, rewarded.params)
    list(iterations(rewarded, rewarded.begin(), 1))
    for one, other in zip(jax.tree.leaves(rewarded.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(whole[0][2].metrics["kl"]) == pytest.approx(0, abs=1e-5), "the policy begins as its reference"
    assert float(whole[-1][2].metrics["kl"]) > 0.5


def test_rollouts_can_be_watched(rewarded):
    seen = []
    list(iterations(rewarded, rewarded.begin(), 2, watch=lambda done, rollout: seen.append((done, rollout))))
    assert [done for done, _ in seen] == [1, 2]
    assert all(len(rollout.prompts) == len(rollout.responses) == len(rollout.scores) == 32 for _, rollout in seen)


def test_a_state_at_the_end_is_not_moved_and_one_within_an_iteration_is_refused(rewarded, whole):
    state = whole[1][1]
    assert list(iterations(rewarded, state, 2)) == []
    with pytest.raises(UsageError, match="step 9 lies within an iteration of 2 epochs x 2 minibatches"):
        next(iterations(rewarded, state.replace(step=np.int32(9)), 5))


def test_all_updates_are_one_program(rewarded, whole):
    assert rewarded.step._cache_size() == 1
