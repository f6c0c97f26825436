"""How a run begins: parameters drawn one by one are those of Flax's own `init`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.mesh import make_mesh, parameter_shardings
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.train import init_params

TINY = GPTConfig(vocab_size=33, n_positions=16, n_embd=32, n_layer=2, n_head=4)
VARIANTS = [
    {},
    {"tie_word_embeddings": False, "labels": ("no", "yes"), "initializer_range": 0.3},
    {"bias": False, "norm_position": "post", "position_embedding": "sinusoidal"},
]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_parameters_drawn_one_by_one_are_those_of_init(change):
    config = dataclasses.replace(TINY, **change)
    model = GPT(config)
    whole = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])(jax.random.key(7))
    places = parameter_shardings(make_mesh(), parameters(config))
    drawn = init_params(model, seed=7, shardings=places)
    assert jax.tree.map(lambda leaf: leaf.sharding, drawn) == places
    assert jax.tree.structure(drawn) == jax.tree.structure(whole)
    for one, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
