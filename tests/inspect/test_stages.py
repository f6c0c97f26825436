"""The ladder of attention, and derivatives of every kind through the reference implementation."""

import re
from dataclasses import replace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.inspect import attention_stages, inspect
from jaxgpt.model.attention import attention
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

X, W_Q, W_K, W_V, W_O = np.random.default_rng(0).normal(size=(5, 8, 8)).astype("f4")
CONFIG = GPTConfig(13, 8, n_embd=8, n_layer=2, n_head=2)


def softmax(x):
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def test_raw_scores_are_symmetric_and_those_of_queries_and_keys_are_not():
    raw, projected = attention_stages(X), attention_stages(X, W_Q, W_K)
    np.testing.assert_allclose(raw.scores[0, 0], raw.scores[0, 0].T, atol=1e-5)
    np.testing.assert_allclose(raw.out[0], softmax(X @ X.T) @ X, rtol=1e-4, atol=1e-5)
    assert np.abs(projected.scores[0, 0] - projected.scores[0, 0].T).max() > 1
    np.testing.assert_allclose(attention_stages(X, scaled=True).scaled, raw.scores / 8**0.5, rtol=1e-5)


def test_causal_is_an_option():
    assert (attention_stages(X).weights[0, 0, 0] > 0).all()
    assert (np.triu(attention_stages(X, causal=True).weights[0, 0], 1) == 0).all()


def test_the_top_of_the_ladder_is_the_models_attention(draw):
    config = replace(CONFIG, bias=False)
    params = draw(config)
    found = inspect(config, params, [[1, 2, 3, 4, 5]])
    block = params["h_0"]
    x = found.resid_pre[0, 0]
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * block["ln_1"]["scale"]
    w_q, w_k, w_v = np.split(block["attn"]["c_attn"]["kernel"], 3, axis=-1)
    w_o = block["attn"]["c_proj"]["kernel"]
    stages = attention_stages(x, w_q, w_k, w_v, w_o, n_head=2, scaled=True, causal=True)
    for mine, other in zip(jax.tree.leaves(stages), jax.tree.leaves(found.attention), strict=True):
        np.testing.assert_allclose(mine[0], other[0, 0], rtol=1e-3, atol=1e-4)


def test_heads_must_divide_the_width():
    with pytest.raises(UsageError, match="n_head is 3; the width of 8"):
        attention_stages(X, n_head=3)


def test_a_mask_may_let_a_query_see_later_keys_and_one_without_its_axes_is_refused(unchecked_types):
    q = jnp.asarray(X)[None, None]
    seen = jnp.ones((1, 1, 8, 8), bool)
    np.testing.assert_allclose(attention(q, q, q, seen, scale=1.0)[0, 0], softmax(X @ X.T) @ X, rtol=1e-4, atol=1e-5)
    for wrong in (seen[0, 0], seen[..., :7], seen.repeat(2, 1), seen.astype("f4"), jnp.ones((1, 8))):
        says = rf"{wrong.dtype}{list(wrong.shape)}: it must be bool[1 or 1, 1 or 1, 8, 8]"
        with pytest.raises(UsageError, match=re.escape(says)):
            attention(q, q, q, wrong, scale=1.0)


def logits_of(autodiff, table, params, dtype=jnp.float32):
    model = GPT(CONFIG, dtype, autodiff=autodiff)
    return model.apply({"params": {**params, "wpe": {"embedding": table}}}, jnp.arange(6)[None])[0]


def test_jacobians_and_hessians_forward_over_reverse(draw):
    params = jax.tree.map(jnp.asarray, draw(CONFIG))
    table = params["wpe"]["embedding"]
    outputs = [logits_of(autodiff, table, params) for autodiff in (False, True)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)
    forward = jax.jit(jax.jacfwd(lambda x: logits_of(True, x, params)[0, -1]))(table)
    reverse = jax.jit(jax.jacrev(lambda x: logits_of(False, x, params)[0, -1]))(table)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=2e-3)

    def loss(x):
        return jax.nn.logsumexp(logits_of(True, x, params)).mean()

    direction = jax.random.normal(jax.random.key(0), table.shape) / 8  # layer norm takes no notice of equal ones
    gradient = jax.jit(jax.grad(loss))
    _, product = jax.jvp(gradient, (table,), (direction,))
    _, linear = jax.linearize(gradient, table)
    np.testing.assert_allclose(product, linear(direction), rtol=1e-4, atol=1e-5)
    step = 1e-2
    difference = (gradient(table + step * direction) - gradient(table - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, difference, atol=0.02 * float(jnp.abs(product).max()))


@pytest.mark.parametrize("autodiff", [True, False])
def test_one_exported_program_serves_every_length(autodiff, draw, unchecked_types):
    """With a symbolic number of rows and tokens."""
    params = jax.tree.map(jnp.asarray, draw(CONFIG))
    rows, length = jax.export.symbolic_shape("rows, length", constraints=["length <= 8"])
    program = jax.jit(lambda tokens: GPT(CONFIG, autodiff=autodiff).apply({"params": params}, tokens)[0])
    exported = jax.export.export(program)(jax.ShapeDtypeStruct((rows, length), jnp.int32))
    for shape in ((1, 3), (2, 8)):
        tokens = jnp.arange(shape[0] * shape[1]).reshape(shape) % 13
        own = GPT(CONFIG).apply({"params": params}, tokens)[0]
        np.testing.assert_allclose(exported.call(tokens), own, rtol=1e-4, atol=1e-4)


def test_so_it_is_in_bfloat16(draw):
    params = jax.tree.map(jnp.asarray, draw(CONFIG))
    table = params["wpe"]["embedding"]
    _, change = jax.jvp(lambda x: logits_of(True, x, params, jnp.bfloat16), (table,), (table,))
    assert change.shape == (1, 6, 13) and bool(jnp.isfinite(change).all())
