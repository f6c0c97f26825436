"""The linear layer: Linen's values and gradients, whichever of its sides is the wider."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen.initializers import normal

from jaxgpt.model.activations import ACTIVATIONS
from jaxgpt.model.linear import Linear, product

X = jax.random.normal(jax.random.key(0), (2, 5, 12))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("features", [7, 12, 30])
def test_values_and_gradients_are_linens(features: int, use_bias: bool, dtype: jnp.dtype):
    results = []
    for module in (
        Linear(features, use_bias, dtype, normal(0.5)),
        nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=normal(0.5)),
    ):
        params = module.init(jax.random.key(1), X)
        out, pull = jax.vjp(module.apply, params, X)
        results.append((out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(dtype))))
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    for own, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert own.dtype == other.dtype
        np.testing.assert_allclose(own.astype(jnp.float32), other.astype(jnp.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "mish"])
def test_a_feed_forward_layer_keeps_only_what_its_activation_is_given_and_returns(name: str):
    batch, length, width, inner = 4, 128, 64, 1024

    def loss(layers, x):
        for up, down in layers:
            x = x + product(ACTIVATIONS[name](product(x, up)), down)
        return (x**2).sum()

    def temporary(count: int) -> int:
        layers = [(jnp.zeros((width, inner)), jnp.zeros((inner, width)))] * count
        compiled = jax.jit(jax.grad(loss)).lower(layers, jnp.zeros((batch, length, width))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(5) - temporary(3) <= 2 * 2 * 4 * batch * length * inner
