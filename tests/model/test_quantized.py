"""A matrix for decoding: the product with what it stands for, whatever its form and however many the rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import quantized as matrices
from jaxgpt.model.linear import Embed
from jaxgpt.model.quantized import MOST_ROWS, DecodingMatrix, quantize

OUTPUTS, INPUTS = 10, 16


def make(form: str) -> DecodingMatrix:
    kernel = jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS))
    if form in ("int8", "int4"):
        return quantize({"kernel": kernel}, form)["kernel"]
    return DecodingMatrix(kernel.T.astype(form))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (8, 1), (3, MOST_ROWS)], ids=str)
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_a_product_is_that_with_the_matrix_in_f32(form: str, rows: tuple[int, int], backend: str, monkeypatch):
    monkeypatch.setattr(matrices, "platform", lambda: backend)
    matrix, x = make(form), jax.random.normal(jax.random.key(1), (*rows, INPUTS))
    expected = np.asarray(x, np.float64) @ np.asarray(matrix.dense(), np.float64).T
    out = jax.jit(DecodingMatrix.product)(matrix, x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_product_of_integers_is_that_of_what_the_input_is_rounded_to(rows: int, backend: str, monkeypatch):
    monkeypatch.setattr(matrices, "platform", lambda: backend)
    matrix = quantize({"kernel": jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS))}, "w8a8")["kernel"]
    x = jax.random.normal(jax.random.key(1), (rows, 1, INPUTS)).at[0].multiply(100).at[-1, 0, 0].set(0)
    step = np.abs(np.asarray(x, np.float64)).max(-1, keepdims=True) / 127
    rounded = np.round(np.asarray(x, np.float64) / step) * step
    out = jax.jit(DecodingMatrix.product)(matrix, x)
    expected = rounded @ np.asarray(matrix.dense(), np.float64).T
    np.testing.assert_allclose(out / step, expected / step, rtol=1e-5, atol=1e-4)
    assert not jax.jit(DecodingMatrix.product)(matrix, 0 * x).any()


@pytest.mark.usefixtures("unchecked_types")  # what `lower` keeps of its arguments are no arrays
def test_what_leads_to_a_row_is_not_computed_again_for_each_output():
    """What is fused into the product is only what stands for the weights."""
    matrix = DecodingMatrix(jnp.ones((256, 128), jnp.int8), jnp.ones((256, 1)))
    row = jax.random.normal(jax.random.key(0), (1, 1, 128))
    program = jax.jit(lambda matrix, row: matrix.product(jax.nn.gelu(row))).lower(matrix, row).compile().as_text()
    products = [body for body in program.split("\n\n") if " dot(" in body and "s8[256,128]" in body]
    assert len(products) == 1 and not {"tanh", "multiply", "divide"} & set(re.findall(r" (\w+)\(", products[0]))


@pytest.mark.parametrize("form", ["float32", "int8", "int4"])
def test_a_table_gives_its_rows_and_nan_outside(form: str):
    matrix = make(form)
    index = jnp.array([[0, OUTPUTS - 1, 3, OUTPUTS]])
    out = Embed(OUTPUTS, INPUTS, jnp.float32, jax.nn.initializers.zeros).apply({"params": {"embedding": matrix}}, index)
    np.testing.assert_array_equal(out[0, :3], matrix.dense()[index[0, :3]])
    assert jnp.isnan(out[0, 3]).all()


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.usefixtures("unchecked_types")  # what `lower` keeps of its arguments are no arrays
def test_a_loop_reads_the_integers_and_no_f32_copy_of_them(rows: int):
    matrix = DecodingMatrix(jnp.ones((256, 256), jnp.int8), jnp.ones((256, 1)))

    @jax.jit
    def loop(matrix: DecodingMatrix, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 9, lambda _, x: matrix.product(x), x)

    program = loop.lower(matrix, jnp.ones((rows, 1, 256))).compile().as_text()
    [condition] = [line for line in program.splitlines() if " while(" in line]
    assert "s8[256,256]" in condition and "f32[256,256]" not in condition
