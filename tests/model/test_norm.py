"""Layer norm: Linen's values and gradients, without the loss of digits that Linen's fast variance has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.norm import LayerNorm

X = jax.random.normal(jax.random.key(0), (2, 5, 12))
PARAMS = {"scale": jnp.linspace(0.5, 2, 12), "bias": jnp.linspace(-1, 1, 12)}


@pytest.mark.parametrize("names", [("scale", "bias"), ("scale",)], ids="+".join)
def test_values_and_gradients_are_linens(names: tuple[str, ...]):
    params, use_bias = {name: PARAMS[name] for name in names}, "bias" in names
    ours = LayerNorm(0.1, use_bias, jnp.float32)
    linens = nn.LayerNorm(0.1, use_bias=use_bias, use_fast_variance=False)
    results = []
    for module in (ours, linens):
        out, pull = jax.vjp(lambda params, x, module=module: module.apply({"params": params}, x), params, X)
        results.append((out, pull(jnp.cos(jnp.arange(X.size)).reshape(X.shape))))
    for own, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_a_large_mean_costs_no_digits_of_the_variance():
    # The integers 1000 … 1011 and their mean are exact in f32; E[x²] - E[x]² would be off by tenths of a percent.
    x = 1000 + jnp.arange(12.0)
    out = LayerNorm(1e-5, False, jnp.float32).apply({"params": {"scale": jnp.ones(12)}}, x[None, None])
    exact = (np.arange(12) - 5.5) / np.sqrt(np.var(np.arange(12)) + 1e-5)
    np.testing.assert_allclose(out[0, 0], exact, rtol=1e-6)


def test_in_bf16_statistics_are_f32():
    x = (100 + X).astype(jnp.bfloat16)
    out = LayerNorm(1e-5, True, jnp.bfloat16).apply({"params": PARAMS}, x)
    exact = LayerNorm(1e-5, True, jnp.float32).apply({"params": PARAMS}, x.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    # Only the result is rounded, to 8 bits.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8)
