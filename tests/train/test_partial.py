"""What is trained: the paths, the errors, and that what is frozen costs no backward pass."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxgpt.chat.examples import Labelled
from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.classification import classify
from jaxgpt.train.config import trains
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import make_step

RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CONFIG = GPTConfig(vocab_size=17, n_positions=16, n_embd=16, n_layer=4, n_head=2, labels=("a", "b"), **RATES)
BARE = replace(CONFIG, labels=None)


def moved(config: GPTConfig, which: str) -> set[str]:
    moves = trains(config, which)
    return {parameter.path[0] for parameter in parameters(config) if moves(parameter.path)}


@pytest.mark.parametrize(
    ("config", "which", "expected"),
    [
        (CONFIG, "all", {"wte", "wpe", "h_0", "h_1", "h_2", "h_3", "ln_f", "score"}),
        (CONFIG, "last_2", {"h_2", "h_3", "ln_f", "score"}),
        (CONFIG, "last_4", {"h_0", "h_1", "h_2", "h_3", "ln_f", "score"}),
        (CONFIG, "head", {"score"}),
        (BARE, "last_1", {"h_3", "ln_f"}),
        (replace(BARE, tie_word_embeddings=False), "last_1", {"h_3", "ln_f", "lm_head"}),
        (replace(CONFIG, norm_position="post"), "last_1", {"h_3", "score"}),
    ],
)
def test_what_is_trained(config: GPTConfig, which: str, expected: set[str]):
    assert moved(config, which) == expected


def test_of_twelve_layers_the_last_two_are_10_and_11():
    assert moved(GPTConfig(), "last_2") == {"h_10", "h_11", "ln_f"}


@pytest.mark.parametrize(
    "which", ["last_5", "last_0", "last_", "last", "last_-1", "last_1 ", "none", "", "last_5000000000"]
)
def test_another_value_is_an_error_that_names_it_and_what_is_valid(which: str):
    with pytest.raises(UsageError) as error:
        trains(CONFIG, which)
    assert repr(which) in str(error.value) and "n_layer, 4" in str(error.value)


def test_a_number_that_python_does_not_read_is_one_too():
    with pytest.raises(UsageError, match="K from 1 to n_layer, 4"):
        trains(CONFIG, "last_" + 5000 * "9")


def test_a_head_that_is_not_there_is_an_error():
    with pytest.raises(UsageError, match="no head that scores; valid are all and last_K"):
        trains(BARE, "head")


SGD = optax.sgd(1.0)
BATCH = Labelled(
    np.arange(128, dtype=np.int32).reshape(8, 16) % 17,
    np.full(8, 15, np.int32),
    np.arange(8, dtype=np.int32) % 2,
    np.ones(8, np.float32),
)


def begin(config: GPTConfig, params: Any, which: str) -> tuple[Any, TrainState]:
    step = jax.jit(make_step(classify(GPT(config)), SGD, seed=0))
    return step, TrainState.create(params, SGD, trains(config, which))


def test_what_is_frozen_costs_no_backward_pass(draw, unchecked_types):
    def cost(which: str) -> float:
        step, state = begin(CONFIG, draw(CONFIG), which)
        # Not compiled: what the compiler might throw out counts, so this is the most that it can be.
        return step.lower(state, BATCH).cost_analysis()["flops"]

    forward = cost("head")
    parts = [cost(which) / forward for which in ("last_1", "last_2", "all")]
    # Forward through 4 blocks is 1; backward through one of them is 2 / 4.
    np.testing.assert_allclose(parts, [1.5, 2, 3], rtol=0.05)


def test_a_step_moves_what_is_trained_and_nothing_else(draw):
    config = replace(CONFIG, n_layer=2, bias=False)
    params, moves = draw(config), trains(config, "last_1")
    step, state = begin(config, params, "last_1")
    after, _ = step(state, BATCH)
    before, after = flatten_dict(params), flatten_dict(after.whole)
    assert {path for path in before if not np.array_equal(before[path], after[path])} == set(filter(moves, before))
