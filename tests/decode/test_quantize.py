"""Quantized weights: as near as their rounding allows, and exactly the model that their floats make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.engine import generate, stream
from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import parameters
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import DecodingMatrix, cast_matrices, quantize

KINDS = ["int8", "int4"]
TOKENS = jnp.arange(24).reshape(2, 12)
VARIANTS = [{}, {"tie_word_embeddings": False}, {"bias": False, "norm_position": "post"}]


def is_matrix(x) -> bool:
    return isinstance(x, DecodingMatrix)


def dequantized(params):
    """Return the parameters with floats where the integers are."""

    def floats(path, x):
        if not is_matrix(x):
            return x
        return x.dense().T if path[-1].key == "kernel" else x.dense()

    return jax.tree_util.tree_map_with_path(floats, params, is_leaf=is_matrix)


def logits_of(config, params) -> jax.Array:
    return GPT(config).apply({"params": params}, TOKENS)[0]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_that_of_the_dequantized_weights(config, kind, change):
    config = dataclasses.replace(config, initializer_range=0.1, **change)
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    narrow = quantize(params, kind)
    np.testing.assert_allclose(logits_of(config, narrow), logits_of(config, dequantized(narrow)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "most"), [("int8", 127), ("int4", 7)])
def test_each_weight_is_within_half_a_step(params, kind, most):
    kernel = params["h_0"]["mlp"]["c_proj"]["kernel"]
    matrix = quantize(params, kind)["h_0"]["mlp"]["c_proj"]["kernel"]
    groups = np.asarray(kernel.T).reshape(*matrix.scale.shape, -1)
    step = np.abs(groups).max(-1, keepdims=True) / most
    error = np.abs(np.asarray(matrix.dense()).reshape(groups.shape) - groups)
    assert (error <= 0.5001 * step).all()


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_but_for_positions_become_integers_and_the_rest_stays(config, params, kind):
    config = dataclasses.replace(config, tie_word_embeddings=False)
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    narrow = quantize(params, kind)
    for parameter in parameters(config):
        before, after = params, narrow
        for key in parameter.path:
            before, after = before[key], after[key]
        if parameter.row.decay and parameter.path[0] != "wpe":
            assert after.values.dtype in (jnp.int8, jnp.uint8)
            assert after.values.nbytes == before.size // (1 if kind == "int8" else 2)
        else:
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_decode_give_what_the_dequantized_weights_give(config, params, prompts, kind):
    narrow = quantize(params, kind)
    expected = generate(config, dequantized(narrow), prompts, max_new_tokens=12)
    assert generate(config, narrow, prompts, max_new_tokens=12) == expected
    steps = stream(config, narrow, prompts, max_new_tokens=12)
    assert list(map(list, zip(*steps, strict=True))) == expected
    assert generate_many(config, narrow, prompts, max_new_tokens=12, batch_size=2) == expected


def test_eight_bits_stay_close_to_the_floats(config, params):
    exact, close = (jax.nn.log_softmax(logits_of(config, tree)) for tree in (params, quantize(params, "int8")))
    assert (jnp.exp(exact) * (exact - close)).sum(-1).mean() < 1e-3


def test_rows_of_zeros_stay_zeros():
    for kind in KINDS:
        assert not quantize({"kernel": jnp.zeros((8, 3))}, kind)["kernel"].dense().any()


def test_what_is_ready_for_decoding_stays(params):
    for tree in (cast_matrices(params, dtype=jnp.float32, rows=2), quantize(params, "int8")):
        again = cast_matrices(tree, dtype=jnp.float32, rows=2)
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.usefixtures("unchecked_types")  # the kind is wrong
def test_an_unknown_kind_and_inputs_without_a_pair_are_refused(params):
    with pytest.raises(UsageError, match="quantize is 'int3'; it must be one of int8, int4, w8a8"):
        quantize(params, "int3")
    with pytest.raises(UsageError, match="quantize int4: a layer of 7 inputs"):
        quantize({"kernel": jnp.zeros((7, 4))}, "int4")
