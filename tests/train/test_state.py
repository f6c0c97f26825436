"""How a run begins: parameters drawn one by one are those of Flax's own `init`."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.data.packing import pad_batch
from jaxgpt.errors import UsageError
from jaxgpt.mesh import make_mesh, parameter_shardings
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.train import init_params
from jaxgpt.train.step import gradient

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


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_weights_and_gradients_are_f32_where_jax_computes_in_64_bits(change):
    """As who has enabled them for something else has everywhere."""
    model = GPT(dataclasses.replace(TINY, **change))
    usual = init_params(model, seed=7)
    with jax.enable_x64(True):
        params = init_params(model, seed=7)
        of_flax = jax.eval_shape(model.init, jax.random.key(7), jnp.zeros((1, 1), jnp.int32))["params"]
        objective, batch = pretrain(model), pad_batch([[1, 2, 3]])
        key = jax.random.key(0)
        gradients, _ = jax.eval_shape(partial(gradient, objective), params, {}, batch, key)
    jax.tree.map(np.testing.assert_array_equal, params, usual)
    assert {leaf.dtype for tree in (params, of_flax, gradients) for leaf in jax.tree.leaves(tree)} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_of_more_than_32_bits_is_no_other_seed(seed: int):
    with pytest.raises(UsageError, match=rf"seed is {seed}; it must be from 0 to 2\^32 - 1"):
        init_params(GPT(TINY), seed=seed)
