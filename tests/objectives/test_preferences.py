"""Rewards and DPO: plain-numpy twins, closed forms at the first step, and what may not matter."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.chat.examples import Pairs
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.outputs import sequence_log_probs
from jaxgpt.objectives.preferences import dpo, reference_log_probs, reward, with_reference
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import make_step

RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CONFIG = GPTConfig(vocab_size=17, n_positions=12, n_embd=8, n_layer=1, n_head=2, labels=("reward",), **RATES)
BETA = 0.5
# Prompt, chosen and rejected answer; the last pair only fills the batch up.
PAIRS = [
    ([1, 2], [3, 4, 5], [6]),
    ([7], [8], [9, 10, 11, 12]),
    ([3, 3, 3], [4, 4], [5, 5]),
    ([16, 2], [1, 0], [0, 1, 2]),
    ([5], [6, 7], [8]),
    ([14], [14], [14]),
]
LENGTHS = np.array([[len(chosen), len(rejected)] for _, chosen, rejected in PAIRS], float)
COUNTS = np.array([1, 1, 1, 1, 1, 0], float)
KINDS = [
    ("sigmoid", 0.0, False),
    ("sigmoid", 0.1, False),
    ("sigmoid", 0.0, True),
    ("robust", 0.2, False),
    ("hinge", 0.0, False),
    ("hinge", 0.0, True),
    ("ipo", 0.0, False),
]


def pairs(length: int = 8, pad_id: int = 0) -> Pairs:
    tokens, targets = (np.full((len(PAIRS), 2, length), pad_id, np.int32) for _ in range(2))
    weights = np.zeros(tokens.shape, np.float32)
    last = np.zeros((len(PAIRS), 2), np.int32)
    for row, (prompt, *answers) in enumerate(PAIRS):
        for side, answer in enumerate(answers):
            text = prompt + answer
            tokens[row, side, : len(text)] = text
            targets[row, side, : len(text) - 1] = text[1:]
            weights[row, side, len(prompt) - 1 : len(text) - 1] = COUNTS[row]
            last[row, side] = len(text) - 1
    margin = np.array([0, 0.5, 0, -0.2, 1, 9], np.float32)
    reference = np.random.default_rng(2).normal(-4, 2, (len(PAIRS), 2)).astype(np.float32)
    return Pairs(tokens, targets, weights, last, margin, reference)


@pytest.fixture(scope="module")
def params(draw) -> Any:
    return draw(CONFIG)


@pytest.fixture(scope="module")
def model(bigram) -> GPT:
    return bigram(CONFIG)


@pytest.fixture(scope="module")
def log_probs(model, params) -> np.ndarray:
    """Each answer's log-probability, from the model's logits alone."""
    batch = pairs()
    tokens, targets, weights = (x.reshape(-1, 8) for x in (batch.tokens, batch.targets, batch.weights))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, tokens)[0], np.float64)
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    return (chosen * weights).sum(-1).reshape(-1, 2)


@pytest.fixture(scope="module")
def rewards(model, params) -> np.ndarray:
    batch = pairs()
    hidden, _ = jax.jit(partial(model.apply, method="hidden"))({"params": params}, batch.tokens.reshape(-1, 8))
    at_last = np.asarray(hidden, np.float64)[np.arange(12), batch.last.reshape(-1)]
    return (at_last @ params["score"][0]).reshape(-1, 2)


def both(objective: Any) -> Any:
    def loss(params: Any, batch: Pairs) -> Any:
        sums = objective(params, batch, None)
        return sums.loss, sums

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def dpo_sums(model) -> Any:
    found: dict[Any, Any] = {}

    def of(kind: tuple[Any, ...]) -> Any:
        loss, smoothing, normalised = kind
        options = {"beta": BETA, "label_smoothing": smoothing, "length_normalised": normalised}
        return found.setdefault(kind, both(dpo(model, loss=loss, **options)))

    return of


@pytest.fixture(scope="module")
def reward_sums(model) -> Any:
    return both(reward(model, centring=0.01))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def dpo_twin(kind: tuple[Any, ...], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's loss, and its derivative by the answers' scores, from TRL's definitions."""
    loss, e, normalised = kind
    count = np.maximum(LENGTHS, 1) if normalised or loss == "ipo" else np.ones_like(LENGTHS)
    delta = scores[:, 0] / count[:, 0] - scores[:, 1] / count[:, 1]
    x = BETA * delta
    losses, slopes = {
        "sigmoid": lambda: (
            -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x),
            BETA * (-(1 - e) * sigmoid(-x) + e * sigmoid(x)),
        ),
        "robust": lambda: (
            (-(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e),
            BETA * (-(1 - e) * sigmoid(-x) - e * sigmoid(x)) / (1 - 2 * e),
        ),
        "hinge": lambda: (np.maximum(0, 1 - x), np.where(x < 1, -BETA, 0)),
        "ipo": lambda: ((delta - 1 / (2 * BETA)) ** 2, 2 * (delta - 1 / (2 * BETA))),
    }[loss]()
    return losses, slopes[:, None] * np.array([1, -1]) / count


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), found, expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dpo_is_its_numpy_twin_in_value_and_gradient(params, log_probs, dpo_sums, vjp_of_log_probs, kind):
    batch = pairs()
    gradient, sums = dpo_sums(kind)(params, batch)
    scores = log_probs - batch.reference
    losses, slopes = dpo_twin(kind, scores)
    assert sums.weight == 5
    np.testing.assert_allclose(sums.loss, (losses * COUNTS).sum(), rtol=1e-5)
    expected = vjp_of_log_probs((slopes * COUNTS[:, None]).astype(np.float32))
    assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def vjp_of_log_probs(model, params) -> Any:
    batch = pairs()
    rows = [jnp.asarray(x.reshape(-1, 8)) for x in (batch.tokens, batch.targets, batch.weights)]

    @jax.jit
    def pull(params: Any, cotangents: Any) -> Any:
        return jax.grad(lambda params: sequence_log_probs(model, params, *rows) @ cotangents.reshape(-1))(params)

    return partial(pull, params)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids=str)
def test_dpos_metrics_are_of_whole_answers(params, log_probs, dpo_sums, kind):
    batch = pairs()
    _, sums = dpo_sums(kind)(params, batch)
    chosen, rejected = (BETA * (log_probs - batch.reference)).T
    expected = {
        "accuracy": chosen > rejected,
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "logp_chosen": log_probs[:, 0],
        "logp_rejected": log_probs[:, 1],
    }
    assert set(sums.metrics) == set(expected)
    for name, values in expected.items():
        total, weight = sums.metrics[name]
        assert weight == 5
        np.testing.assert_allclose(total, (values * COUNTS).sum(), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (KINDS[0], np.log(2)),
        (KINDS[1], np.log(2)),
        (KINDS[3], np.log(2)),
        (KINDS[4], 1.0),
        (KINDS[6], 1 / (2 * BETA) ** 2),
    ],
    ids=str,
)
def test_where_the_policy_is_the_reference_the_loss_is_known(params, dpo_sums, references, kind, first: float):
    _, sums = dpo_sums(kind)(params, replace(pairs(), reference=references))
    np.testing.assert_allclose(sums.loss / sums.weight, first, rtol=1e-6)
    np.testing.assert_allclose(sums.metrics["margin"][0], 0, atol=1e-5)


@pytest.fixture(scope="module")
def references(model, params) -> np.ndarray:
    return reference_log_probs(model, params, [replace(pairs(), reference=None)])


def test_references_are_the_log_probabilities_batch_after_batch(model, params, log_probs, references):
    np.testing.assert_allclose(references, log_probs, rtol=1e-5)
    half = [jax.tree.map(lambda x, rows=rows: x[rows], pairs()) for rows in (slice(3), slice(3, 6))]
    np.testing.assert_allclose(reference_log_probs(model, params, half), references, rtol=1e-5)


def test_a_reference_that_the_batch_does_not_bring_is_made_on_the_fly_without_a_gradient(model, params, dpo_sums):
    def off(params: Any) -> Any:  # the reference is a function of what is trained, as where adapters are left off
        return jax.tree.map(lambda leaf: 0.9 * leaf, params)

    kept = reference_log_probs(model, off(params), [pairs()])
    expected, sums = dpo_sums(KINDS[0])(params, replace(pairs(), reference=kept))
    lively = both(with_reference(dpo(model, beta=BETA), model, off))
    gradient, same = lively(params, replace(pairs(), reference=None))
    np.testing.assert_allclose(same.loss, sums.loss, rtol=1e-5)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    # What the batch does bring is what counts.
    brought = with_reference(dpo(model, beta=BETA), model, lambda params: pytest.fail("not to be asked"))
    assert jax.eval_shape(brought, params, pairs(), None).loss.shape == ()


def test_without_any_reference_dpo_says_what_to_do(model, params):
    with pytest.raises(ValueError, match="with_reference"):
        dpo(model, beta=BETA)(params, replace(pairs(), reference=None), None)


def test_reward_is_its_numpy_twin_in_value_and_in_the_heads_gradient(params, rewards, reward_sums):
    batch = pairs()
    gradient, sums = reward_sums(params, batch)
    chosen, rejected = rewards.T
    x = chosen - rejected - batch.margin
    losses = -log_sigmoid(x) + 0.01 * (chosen + rejected) ** 2
    assert sums.weight == 5
    np.testing.assert_allclose(sums.loss, (losses * COUNTS).sum(), rtol=1e-5)
    expected = {
        "accuracy": chosen > rejected,
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }
    assert set(sums.metrics) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(sums.metrics[name], [(values * COUNTS).sum(), 5], rtol=1e-4, err_msg=name)
    # The gradient along the head itself: rewards are linear in it.
    slopes = -sigmoid(-x)[:, None] * np.array([1, -1]) + 0.02 * (chosen + rejected)[:, None]
    along = (slopes * rewards * COUNTS[:, None]).sum()
    np.testing.assert_allclose((np.asarray(gradient["score"]) * params["score"]).sum(), along, rtol=1e-4)


def test_without_centring_only_the_difference_counts(model, params, rewards):
    sums = jax.jit(reward(model))(params, pairs(), None)
    losses = -log_sigmoid(rewards[:, 0] - rewards[:, 1] - pairs().margin)
    np.testing.assert_allclose(sums.loss, (losses * COUNTS).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_padding_does_not_matter(params, name: str):
    whole = GPT(CONFIG)
    evaluate = jax.jit(dpo(whole, beta=BETA) if name == "dpo" else reward(whole))
    expected = evaluate(params, pairs(), None)
    assert evaluate(params, pairs(pad_id=16), None).loss == expected.loss, "one program: the same bits"
    longer = evaluate(params, pairs(12, pad_id=3), None)
    assert_close(longer, expected, rtol=1e-4)


def test_pairs_that_fill_up_do_not_matter(params, dpo_sums, reward_sums):
    batch = pairs()
    garbage = jax.tree.map(np.copy, batch)
    garbage.tokens[5] = garbage.targets[5] = 9
    garbage.margin[5], garbage.reference[5] = -3, (50, -50)
    for evaluate in (dpo_sums(KINDS[0]), dpo_sums(KINDS[-1]), reward_sums):
        assert_close(evaluate(params, garbage), evaluate(params, batch), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_accumulated_is_one_big_batch(model, params, name: str):
    objective = dpo(model, loss="ipo", beta=BETA) if name == "dpo" else reward(model, centring=0.01)
    optimizer = optax.sgd(0.1)
    (big, whole), (small, parts) = (
        jax.jit(make_step(objective, optimizer, seed=0, accumulate=count))(
            TrainState.create(params, optimizer), pairs()
        )
        for count in (1, 3)
    )
    assert_close(small.params, big.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    assert_close(parts.metrics, whole.metrics, rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_gradients_reach_all_that_is_read_and_nothing_else(params, name: str):
    whole = GPT(CONFIG)
    gradient, _ = both(dpo(whole, beta=BETA) if name == "dpo" else reward(whole, centring=0.01))(params, pairs())
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves((gradient["h_0"], gradient["ln_f"])))
    assert gradient["score"].any() == (name == "reward")
    assert not gradient["wpe"]["embedding"][6:].any(), "no answer is that long"
    # 13 and 15 stand nowhere, 14 only in the pair that fills up; but the LM head reads the whole table.
    reached = gradient["wte"]["embedding"].any(-1).tolist()
    assert reached == [name == "dpo" or token not in (13, 14, 15) for token in range(17)]


def test_bf16_gives_f32_losses(params, bigram, dpo_sums, reward_sums):
    low = bigram(CONFIG, "bfloat16")
    for objective, full in ((dpo(low, beta=BETA), dpo_sums(KINDS[0])), (reward(low, centring=0.01), reward_sums)):
        sums = jax.jit(objective)(params, pairs(), None)
        assert sums.loss.dtype == jnp.float32
        np.testing.assert_allclose(sums.loss, full(params, pairs())[1].loss, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"beta": 0.1, "loss": "sigmoit"}, "did you mean 'sigmoid'"),
        ({"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"beta": 0.1, "loss": "ipo", "label_smoothing": 0.1}, "only the losses sigmoid and robust"),
    ],
)
def test_dpo_refuses_what_makes_no_sense(model, options, message: str, unchecked_types):
    with pytest.raises(UsageError, match=message):
        dpo(model, **options)


def test_a_reward_is_one_score_and_centring_is_positive(model):
    for labels in (None, ("a", "b")):
        with pytest.raises(UsageError, match="exactly one"):
            reward(GPT(replace(CONFIG, labels=labels)))
    with pytest.raises(UsageError, match="centring is 0.0"):
        reward(model, centring=0.0)
