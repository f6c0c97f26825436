from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt.verification.learning as verification
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.verification.learning import verify_training

CONFIG = GPTConfig(vocab_size=61, n_positions=32, n_embd=12, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"bias": False}, {"labels": ("ham", "spam")}], ids=str
)
def test_a_model_learns_as_pytorchs_does(draw, changes):
    config = replace(CONFIG, **changes)
    gradients, updates = verify_training(config, draw(config))
    assert (gradients.result, updates.result) == ("pass", "pass"), (gradients, updates)
    first, last = (float(word) for word in updates.measured.split(";")[0].split()[1::2])
    assert last < first - 0.01


def test_weights_of_few_bits_are_widened_first(draw):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), draw(CONFIG))
    assert [check.result for check in verify_training(CONFIG, params)] == ["pass"] * 2


def test_a_wrong_gradient_is_found_and_named(draw, monkeypatch):
    ours = verification.pretrain

    def wrong(model):
        def objective(params, batch, key):
            bent = {**params, "h_1": {**params["h_1"], "ln_2": jax.tree.map(lambda x: 1.0 * x, params["h_1"]["ln_2"])}}
            bent["h_1"]["ln_2"]["scale"] = params["h_1"]["ln_2"]["scale"] * 2 - jax.lax.stop_gradient(
                params["h_1"]["ln_2"]["scale"]
            )
            return ours(model)(bent, batch, key)

        return objective

    monkeypatch.setattr(verification, "pretrain", wrong)
    gradients, updates = verify_training(CONFIG, draw(CONFIG))
    assert gradients.result == "FAIL" and gradients.measured.endswith("of h.1.ln_2.weight")
    assert updates.result == "FAIL" or updates.measured


@pytest.mark.parametrize("place", [0, -1])
def test_a_gradient_that_is_no_number_is_the_worst(draw, place):
    rows, params = np.random.default_rng(1).integers(61, size=(2, 8)), draw(CONFIG)
    expected = {row.hf_name: np.ones(row.shape) for row in parameters(CONFIG)}
    name = list(expected)[place]
    expected[name][...] = np.nan
    worst, which = verification.worst_gradient(CONFIG, params, rows, expected)
    assert np.isnan(worst) and which == name


def test_a_model_too_large_to_learn_here_is_said_to_be(draw, monkeypatch):
    monkeypatch.setattr(verification, "COPIES", 10**12)
    checks = verify_training(CONFIG, draw(CONFIG))
    assert {check.result for check in checks} == {"not applicable"} and "GiB" in checks[0].measured
