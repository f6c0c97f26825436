"""The platforms' attention: equal to our own, taken only where it fits, and done without where it does not work."""

import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxgpt.model import attention_kernels
from jaxgpt.model.attention import attention, causal
from jaxgpt.model.attention_kernels import cudnn_works, kernels, pallas

SCALE = 0.3
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@pytest.fixture(autouse=True)
def nothing_known_of_cudnn() -> Iterator[None]:
    cudnn_works.cache_clear()
    yield
    cudnn_works.cache_clear()


def draw(length: int, head_dim: int = 64, dtype: str = "float32") -> list[jax.Array]:
    """Return queries, keys, values and the output's gradient."""
    shape = (2, 2, length, head_dim)
    return [jax.random.normal(jax.random.key(seed), shape).astype(dtype) for seed in range(4)]


def both(attend: Attend, arrays: list[jax.Array]) -> list[jax.Array]:
    """Return the output and three gradients."""

    @jax.jit
    def compute(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> list[jax.Array]:
        out, pull = jax.vjp(attend, q, k, v)
        return [out, *pull(d_out)]

    return compute(*arrays)


def interpreted(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return the same of the TPU's kernels, which JAX makes an ordinary program of."""
    with pltpu.force_tpu_interpret_mode(True):
        return both(lambda q, k, v: pallas(q, k, v, SCALE), arrays)


def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return causal(q, k, v, SCALE)


@pytest.mark.parametrize(("length", "blocks"), [(128, (512, 128)), (256, (512, 256)), (384, (128,))])
def test_pallas_has_our_values_and_gradients(length: int, blocks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """In rows of one block, and of several, whose softmax is put together."""
    monkeypatch.setattr(attention_kernels, "PALLAS_BLOCKS", blocks)
    arrays = draw(length)
    for theirs, own in zip(interpreted(arrays), both(ours, arrays), strict=True):
        np.testing.assert_allclose(theirs, own, rtol=1e-4, atol=1e-5)


def test_pallas_in_bf16_is_close():
    for close, exact in zip(interpreted(draw(256, dtype="bfloat16")), both(ours, draw(256)), strict=True):
        assert close.dtype == jnp.bfloat16
        # Each of a few roundings is up to 2^-9 of what is rounded.
        assert jnp.linalg.norm(close - exact) < 2**-6 * jnp.linalg.norm(exact)


@pytest.mark.parametrize(
    ("length", "head_dim", "dtype", "fitting"),
    [
        (1024, 64, "bfloat16", {"cuda", "tpu"}),
        (128, 128, "bfloat16", {"cuda", "tpu"}),
        (1024, 64, "float32", set()),
        (1023, 64, "bfloat16", {"cuda"}),
        (64, 32, "bfloat16", {"cuda"}),
        (1024, 96, "bfloat16", {"cuda"}),
        (1024, 256, "bfloat16", {"tpu"}),
        (100, 4, "bfloat16", set()),
    ],
)
def test_kernels_are_taken_where_they_fit(
    length: int, head_dim: int, dtype: str, fitting: set[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_kernels, "cudnn_works", lambda *_: True)
    assert set(kernels(jnp.zeros((1, 1, length, head_dim), dtype), SCALE)) == fitting


def test_where_no_kernel_is_at_home_a_program_computes_the_same():
    arrays = draw(128, dtype="bfloat16")
    assert "tpu" in kernels(arrays[0], SCALE)
    chosen = both(lambda q, k, v: attention(q, k, v, None, scale=SCALE), arrays)
    for one, other in zip(chosen, both(ours, arrays), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_gpu_without_cudnn_is_told_once_and_does_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = draw(128, dtype="bfloat16")
    with pytest.warns(UserWarning, match="cuDNN's attention can't be used here.*: cuDNN is not detected") as told:
        for _ in range(2):
            assert "cuda" not in kernels(arrays[0], SCALE)
    assert len(told) == 1


def test_a_machine_without_a_gpu_is_told_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "cuda" not in kernels(draw(128, dtype="bfloat16")[0], SCALE)
