"""Rollouts: what the responses are, and that what is said of them is what one-by-one forward passes say."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import RunError, UsageError
from jaxgpt.model.gpt import GPT
from jaxgpt.rl.advantages import gae, whiten
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.policy import ppo


@pytest.fixture(scope="module")
def reference(rewarded):
    """Another model than the policy, without a value head."""
    generator = np.random.default_rng(0)
    tree = {name: leaf for name, leaf in rewarded.params.items() if name != "score"}
    return jax.tree.map(lambda x: (x + 0.1 * generator.normal(size=x.shape)).astype(np.float32), tree)


@pytest.fixture(scope="module")
def rollout(rewarded, reference):
    return rewarded.rollouts(reference=reference)(rewarded.params, 0.1, 3)


@pytest.fixture(scope="module")
def alone(rewarded):
    """A function (parameters, document) → log-probabilities of its tokens from the second on, and hidden states."""
    model = GPT(replace(rewarded.model.config, labels=None))

    @jax.jit
    def forward(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens, method="hidden")
        logits = model.apply({"params": params}, hidden, method="logits")
        return jax.nn.log_softmax(logits[0, :, :8] / rewarded.config.temperature), hidden[0]

    def read(params, document):
        log_p, hidden = forward(params, np.asarray([document[:-1]]))
        return np.asarray(log_p)[np.arange(len(document) - 1), document[1:]], np.asarray(hidden)

    return read


def test_responses_end_with_their_stop_id_or_are_as_long_as_they_may(rollout):
    assert len({len(prompt) for prompt in rollout.prompts}) == 3
    assert len({len(response) for response in rollout.responses}) > 3
    for response in rollout.responses:
        assert 7 not in response[:-1] and max(response) < 8
        assert response[-1] == 7 or len(response) == 6
    ended = np.mean([response[-1] == 7 for response in rollout.responses])
    assert 0 < ended < 1 and rollout.metrics["ended"] == pytest.approx(ended)
    assert rollout.metrics["response_length"] == pytest.approx(np.mean([len(r) for r in rollout.responses]))


def test_rows_hold_prompt_and_response_and_only_the_response_has_weight(rollout):
    experience = rollout.experience
    assert experience.tokens.shape == (32, 9)
    for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        document = prompt + response
        np.testing.assert_array_equal(experience.tokens[row, : len(document) - 1], document[:-1])
        np.testing.assert_array_equal(experience.targets[row, : len(document) - 1], document[1:])
        wanted = np.zeros(9)
        wanted[len(prompt) - 1 : len(document) - 1] = 1
        np.testing.assert_array_equal(experience.weights[row], wanted)


def test_probabilities_and_values_are_those_of_one_by_one_passes(rewarded, reference, rollout, alone):
    experience = rollout.experience
    for row in range(3):
        prompt, response = rollout.prompts[row], rollout.responses[row]
        first, last = len(prompt) - 1, len(prompt) + len(response) - 1
        log_probs, hidden = alone(rewarded.params, prompt + response)
        of_reference, _ = alone(reference, prompt + response)
        values = hidden @ rewarded.params["score"][0]
        for found, wanted in (
            (experience.old_log_probs, log_probs),
            (experience.old_values, values),
            (experience.reference_log_probs, of_reference),
        ):
            np.testing.assert_allclose(found[row, first:last], wanted[first:], rtol=1e-4, atol=1e-5)
            assert not found[row, :first].any() and not found[row, last:].any()


def test_rewards_are_score_less_penalty_and_divergence(rewarded, rollout):
    """From what the experience holds, in plain numpy up to the advantages, which have a test of their own."""
    experience, config = rollout.experience, rewarded.config
    kl = experience.old_log_probs - experience.reference_log_probs
    rewards = -0.1 * kl
    for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        score = np.mean(np.asarray(response) == 3)
        assert rollout.scores[row] == pytest.approx(score)
        rewards[row, len(prompt) + len(response) - 2] += score - (0 if response[-1] == 7 else 0.01)
    assert rollout.metrics["kl"] == pytest.approx(kl.sum(1).mean(), rel=1e-4) and rollout.metrics["kl"] > 0
    assert rollout.metrics["kl_coef"] == pytest.approx(0.1)
    assert rollout.metrics["score"] == pytest.approx(rollout.scores.mean(), rel=1e-5)
    assert rollout.metrics["reward"] == pytest.approx(rewards.sum(1).mean(), rel=1e-4)
    mask = jnp.asarray(experience.weights > 0)
    advantages, returns = gae(jnp.asarray(rewards), jnp.asarray(experience.old_values), mask, gamma=1.0, lam=config.lam)
    np.testing.assert_allclose(experience.returns, returns, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(experience.advantages, whiten(advantages, mask), rtol=1e-3, atol=1e-4)


def test_a_rollout_is_a_function_of_the_iteration(rewarded, reference, rollout):
    same, other = (rewarded.rollouts(reference=reference)(rewarded.params, 0.1, i) for i in (3, 6))
    assert same.prompts == other.prompts == rollout.prompts
    assert same.responses == rollout.responses != other.responses
    for one, two in zip(jax.tree.leaves(same.experience), jax.tree.leaves(rollout.experience), strict=True):
        np.testing.assert_array_equal(one, two)


def test_groups_are_neighbours_with_one_prompt_and_their_own_advantages(rewarded):
    config = PPOConfig(algorithm="grpo", rollout_size=32, group_size=4, max_new_tokens=6, temperature=0.8)
    prompts = [[1 + n % 5] for n in range(8)]
    found = rewarded.rollouts(config=config, prompts=lambda i: prompts)(rewarded.params, 0.1, 0)
    assert found.prompts == [prompt for prompt in prompts for _ in range(4)]
    assert len({tuple(response) for response in found.responses[:4]}) > 1
    assert found.experience.old_values is None and found.experience.returns is None
    groups = found.scores.reshape(8, 4)
    wanted = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-4)
    weights = found.experience.weights
    np.testing.assert_allclose(found.experience.advantages, wanted.reshape(-1, 1) * weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0] * 3, "the scorer gave 3 rewards for 32 responses"),
        ([1.0] * 5 + [float("nan")] + [1.0] * 26, "gave nan for prompt 5 of iteration 2; it must be a finite number"),
    ],
)
def test_bad_scores_end_the_run_by_name(rewarded, scores, message):
    with pytest.raises(RunError, match=message):
        rewarded.rollouts(scorer=lambda prompts, responses: np.asarray(scores))(rewarded.params, 0.1, 2)


def test_what_does_not_fit_is_refused(rewarded):
    with pytest.raises(UsageError, match="up to 11 tokens and max_new_tokens 6 make 17, but the model's context is 16"):
        rewarded.rollouts(prompt_length=11)
    with pytest.raises(UsageError, match="labels are None; ppo needs one, for the value"):
        rewarded.rollouts(model=GPT(replace(rewarded.model.config, labels=None)))
    three = GPT(replace(rewarded.model.config, labels=("a", "b", "c")))
    with pytest.raises(UsageError, match="ppo needs one, for the value"):
        ppo(three, rewarded.config)
    with pytest.raises(UsageError, match="3 prompts, but rollouts are of 32"):
        rewarded.rollouts(prompts=lambda i: [[1]] * 3)(rewarded.params, 0.1, 2)
    with pytest.raises(UsageError, match=r"missing_end_penalty 0\.01: no id ends a response"):
        rewarded.rollouts(stop_ids=())
    for prompt in ([], [1] * 5):
        made = rewarded.rollouts(prompts=lambda i, prompt=prompt: [[1]] * 31 + [prompt])
        with pytest.raises(UsageError, match=f"prompt 31 of iteration 2 has {len(prompt)} tokens; .* from 1 to 4"):
            made(rewarded.params, 0.1, 2)
