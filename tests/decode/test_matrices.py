"""Matrices made ready for decoding: nothing is copied in vain, and the model stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import quantized
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import DecodingMatrix, cast_matrices

TOKENS = jnp.arange(24).reshape(2, 12)


def buffers(params) -> list[int]:
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]


def test_what_is_as_it_should_be_is_not_copied(params):
    assert buffers(cast_matrices(params, dtype=jnp.float32)) == buffers(params)


def test_a_single_row_finds_matrices_with_more_inputs_than_outputs_by_outputs(params):
    ready = cast_matrices(params, dtype=jnp.float32, rows=1)
    for name, layer in ready["h_0"]["mlp"].items():
        kernel = params["h_0"]["mlp"][name]["kernel"]
        assert isinstance(layer["kernel"], DecodingMatrix) == (kernel.shape[0] > kernel.shape[1])
    others = [tree["h_0"]["attn"] for tree in (ready, params)]
    assert buffers(others[0]) == buffers(others[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_a_single_row_finds_all_matrices_by_outputs(params, dtype: str, monkeypatch):
    monkeypatch.setattr(quantized, "platform", lambda: "gpu")
    for rows, stored in ((1, DecodingMatrix), (2, jax.Array)):
        ready = cast_matrices(params, dtype=dtype, rows=rows)
        linear = [ready["h_0"][part][name]["kernel"] for part in ("attn", "mlp") for name in ready["h_0"][part]]
        assert all(isinstance(matrix, stored) for matrix in (*linear, ready["wte"]["embedding"]))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("arrays", [jnp.asarray, np.asarray])
def test_the_model_stays_the_same(config, params, arrays, rows, backend, monkeypatch):
    monkeypatch.setattr(quantized, "platform", lambda: backend)
    expected, _ = GPT(config).apply({"params": params}, TOKENS)
    ready = cast_matrices(jax.tree.map(arrays, params), dtype=jnp.float32, rows=rows)
    np.testing.assert_allclose(GPT(config).apply({"params": ready}, TOKENS)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_narrower_dtype_leaves_vectors_in_f32(params):
    for leaf in jax.tree.leaves(cast_matrices(params, dtype=jnp.bfloat16, rows=2)):
        assert leaf.dtype == (jnp.float32 if leaf.ndim == 1 else jnp.bfloat16)
