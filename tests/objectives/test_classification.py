"""Classification: the objective, predictions that padding can't change, and the table of mistakes."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxgpt.chat.examples import Labelled
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.classification import classify, confusion, predict
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import make_step

RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CONFIG = GPTConfig(vocab_size=17, n_positions=12, n_embd=8, n_layer=1, n_head=2, labels=("a", "b", "c"), **RATES)
MODEL = GPT(CONFIG)
TEXTS = [[1, 1, 1], [4], [5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [3, 2], [16, 5, 5]]


@pytest.fixture(scope="module")
def params(draw) -> Any:
    return draw(CONFIG)


@pytest.fixture(scope="module")
def objective() -> Any:
    return jax.jit(classify(MODEL))


def labelled(length: int = 8, pad_id: int = 0, texts: list[list[int]] = TEXTS) -> Labelled:
    tokens = np.array([text + [pad_id] * (length - len(text)) for text in texts], np.int32)
    last = np.array([len(text) - 1 for text in texts], np.int32)
    weights = np.array([1, 1, 0.5, 2, 0, 1], np.float32)
    return Labelled(tokens, last, np.arange(len(texts), dtype=np.int32) % 3, weights)


hidden_states = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens, method="hidden")[0])


def at_last(params: Any, batch: Labelled) -> np.ndarray:
    return np.asarray(hidden_states(params, batch.tokens), np.float64)[np.arange(len(batch.last)), batch.last]


def exact_scores(params: Any, batch: Labelled) -> np.ndarray:
    return at_last(params, batch) @ params["score"].astype(np.float64).T


def test_classify_is_weighted_cross_entropy(params, objective):
    batch = labelled()
    scores, rows = exact_scores(params, batch), np.arange(6)
    losses = np.log(np.exp(scores).sum(-1)) - scores[rows, batch.labels]
    sums = objective(params, batch, None)
    np.testing.assert_allclose(sums.loss, (losses * batch.weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.weight, 5.5)
    right, weight = sums.metrics["accuracy"]
    np.testing.assert_allclose(right, ((scores.argmax(-1) == batch.labels) * batch.weights).sum())
    assert weight == sums.weight


def test_the_heads_gradient_is_the_closed_form(params):
    batch = labelled()
    gradient = jax.jit(jax.grad(lambda params, batch: classify(MODEL)(params, batch, None).loss))(params, batch)
    scores = exact_scores(params, batch)
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    errors = (probabilities - np.eye(3)[batch.labels]) * batch.weights[:, None]
    np.testing.assert_allclose(gradient["score"], errors.T @ at_last(params, batch), rtol=1e-4, atol=1e-5)
    # 0 is only padding, 2 and 3 stand only in the text of weight 0, 15 nowhere.
    reached = np.asarray(gradient["wte"]["embedding"]).any(-1)
    assert reached.tolist() == [token not in (0, 2, 3, 15) for token in range(17)]


@pytest.mark.parametrize(("length", "pad_id"), [(8, 16), (12, 3)])
def test_padding_changes_neither_loss_nor_prediction(params, objective, length: int, pad_id: int):
    one, other = (objective(params, batch, None) for batch in (labelled(), labelled(length, pad_id)))
    np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)
    expected = predict(MODEL, params, [labelled()])
    np.testing.assert_array_equal(predict(MODEL, params, [labelled(length, pad_id)]), expected)
    if length == 8:
        assert other.loss == one.loss, "of the same shape it is the same program, bit for bit"


def test_predictions_are_the_best_scores_of_the_texts_that_count(params):
    batches = [labelled(), labelled(texts=TEXTS[::-1])]
    expected = np.concatenate([exact_scores(params, batch).argmax(-1)[batch.weights > 0] for batch in batches])
    found = predict(MODEL, params, batches)
    np.testing.assert_array_equal(found, expected)
    assert len(set(found.tolist())) > 1


def test_accumulated_is_one_big_batch(params, bigram):
    optimizer = optax.sgd(1.0)
    (big, whole), (small, parts) = (
        jax.jit(make_step(classify(bigram(CONFIG)), optimizer, seed=0, accumulate=count))(
            TrainState.create(params, optimizer), labelled()
        )
        for count in (1, 3)
    )
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), small.params, big.params
    )
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    np.testing.assert_allclose(parts.metrics["accuracy"], whole.metrics["accuracy"], rtol=1e-6)


def test_bf16_gives_f32_losses(params, bigram):
    low, full = (jax.jit(classify(bigram(CONFIG, kind)))(params, labelled(), None) for kind in ("bfloat16", "float32"))
    assert low.loss.dtype == np.float32
    np.testing.assert_allclose(low.loss, full.loss, rtol=0.02)


@pytest.mark.parametrize("labels", [None, ("reward",)])
def test_a_model_without_classes_is_refused(labels):
    with pytest.raises(UsageError, match="labels are .*two or more"):
        classify(GPT(replace(CONFIG, labels=labels)))


def test_the_table_counts_and_divides():
    truth, predicted = np.array([0, 0, 0, 1, 1, 0, 0, 0]), np.array([0, 0, 1, 1, 0, 0, 0, 0])
    assert confusion(["ham", "spam", "odd"], truth, predicted).splitlines() == [
        "      as ham  as spam  as odd  texts  share  precision  recall",
        "ham        5        1       0      6  75.0%      83.3%   83.3%",
        "spam       1        1       0      2  25.0%      50.0%   50.0%",
        "odd        0        0       0      0   0.0%          –       –",
        "accuracy 75.0%: 6 of 8 texts",
    ]
