"""Cross-entropy in parts: optax's values and gradients, and never the logits of a whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.objectives import cross_entropy as module
from jaxgpt.objectives.cross_entropy import cross_entropy, map_logits


def draw(rows: int, length: int, width: int, vocab: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    x, head = jax.random.normal(keys[0], (rows, length, width)), jax.random.normal(keys[1], (vocab, width))
    weights = jax.random.choice(keys[2], jnp.array([0, 0.5, 2]), (rows, length))
    return x, head, jax.random.randint(keys[3], (rows, length), 0, vocab), weights


def plain(x: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    return (optax.softmax_cross_entropy_with_integer_labels(x @ head.T, targets) * weights).sum()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_values_and_gradients_are_those_of_all_logits_at_once(parts: int, monkeypatch: pytest.MonkeyPatch):
    x, head, targets, weights = draw(3, 7, 5, 11)  # 7 is cut into parts of 4, 3 or 1, the last one padded
    monkeypatch.setattr(module, "PART_BYTES", -(-4 * 3 * 7 * 11 // parts))
    results = []
    for function in (cross_entropy, plain):
        scaled = jax.jit(lambda *args, function=function: 0.3 * function(*args))
        value, pull = jax.vjp(
            lambda x, head, weights, scaled=scaled: scaled(x, head, targets, weights), x, head, weights
        )
        results.append((value, pull(jnp.ones(()))))
    for own, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)
    # Without a gradient it is the same sum.
    np.testing.assert_allclose(0.3 * cross_entropy(x, head, targets, weights), results[0][0], rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_function_of_logits_and_its_gradients_are_those_of_all_at_once(parts: int, monkeypatch: pytest.MonkeyPatch):
    x, head, targets, weights = draw(3, 7, 5, 11)
    monkeypatch.setattr(module, "PART_BYTES", -(-4 * 3 * 7 * 11 // parts))

    def chosen(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0] ** 2

    def whole(x: jax.Array, head: jax.Array) -> jax.Array:
        return (chosen(x @ head.T, targets) * weights).sum()

    def in_parts(x: jax.Array, head: jax.Array) -> jax.Array:
        return (map_logits(chosen, x, head, targets) * weights).sum()

    for one, other in zip(*(jax.value_and_grad(f, (0, 1))(x, head) for f in (whole, in_parts)), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), one, other)


def test_in_bf16_the_heads_gradient_is_summed_in_f32():
    x, head, targets, weights = draw(2, 64, 8, 12)
    x = x.astype(jnp.bfloat16)
    d_x, d_head = jax.grad(cross_entropy, (0, 1))(x, head, targets, weights)
    rounded = x.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32)
    exact_x, exact_head = jax.grad(plain, (0, 1))(*rounded, targets, weights)
    assert (d_x.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    # Each of the sum's terms is rounded to 8 bits before, and the sum itself no more.
    np.testing.assert_allclose(d_head, exact_head, rtol=2**-8, atol=2**-8 * float(jnp.abs(exact_head).max()))
    np.testing.assert_allclose(d_x.astype(jnp.float32), exact_x, rtol=2**-5, atol=2**-5)


def test_at_gpt2s_vocabulary_and_context_the_logits_are_never_there_as_a_whole():
    shapes = (1, 1024, 64), (50257, 64)
    x, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets, weights = (jax.ShapeDtypeStruct((1, 1024), dtype) for dtype in (jnp.int32, jnp.float32))
    logits = 4 * 1024 * 50257

    def temporary(function: Callable[..., jax.Array]) -> int:
        compiled = jax.jit(jax.grad(function, (0, 1))).lower(x, head, targets, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def squared(x: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        losses = map_logits(optax.softmax_cross_entropy_with_integer_labels, x, head, targets)
        return (losses * weights).sum() ** 2

    # A part's logits and what is made of them, and the head's gradient twice.
    assert temporary(squared) < logits
    assert temporary(cross_entropy) < 2 * module.PART_BYTES + 2 * 4 * 50257 * 64 < logits < temporary(plain)
