"""The platforms' attention: equal to our own, taken only where it fits, and done without where it does not work.

Several host devices need a process of their own, which runs this file.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.cudnn.fused_attention_stablehlo import MaskType
from jax.experimental.pallas import tpu as pltpu
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxgpt.mesh import make_mesh
from jaxgpt.model import attention_kernels
from jaxgpt.model.attention import attention, in_blocks
from jaxgpt.model.attention_kernels import cudnn, cudnn_works, kernels, pallas, report
from jaxgpt.model.config import GPTConfig
from jaxgpt.parallel import ROWS, TENSOR, by_heads, on_mesh_of

ROOT = Path(__file__).parents[2]
SCALE = 0.3
DROPPING = "XLA's, because attn_pdrop is 0.1, and kernels drop nothing"
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None, float], jax.Array]


@pytest.fixture(autouse=True)
def nothing_known_of_cudnn() -> Iterator[None]:
    cudnn_works.cache_clear()
    yield
    cudnn_works.cache_clear()


def draw(length: int, head_dim: int = 64, dtype: str = "float32") -> list[jax.Array]:
    """Return queries, keys, values and the output's gradient."""
    shape = (2, 2, length, head_dim)
    return [jax.random.normal(jax.random.key(seed), shape).astype(dtype) for seed in range(4)]


def segments(length: int) -> jax.Array:
    """Return segments of two rows, some within a kernel's block and some over several, and padding behind those."""
    columns = jnp.arange(length)
    return jnp.stack([1 + (columns > 9) + (columns > length // 2 + 3), jnp.where(columns < length - 60, 1, 0)])


@partial(jax.jit, static_argnums=0)
def both(attend: Attend, arrays: list[jax.Array], segment_ids: jax.Array | None) -> list[jax.Array]:
    """Return the output and three gradients."""
    *qkv, d_out = arrays
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids, SCALE), *qkv)
    return [out, *pull(d_out)]


def interpreted(arrays: list[jax.Array], segment_ids: jax.Array | None = None) -> list[jax.Array]:
    """Return the same of the TPU's kernels, which JAX makes an ordinary program of."""
    with pltpu.force_tpu_interpret_mode(True):
        return both(pallas, arrays, segment_ids)


@pytest.mark.parametrize(
    ("length", "blocks", "packed"),
    [
        (128, (512, 128), False),
        (128, (512, 128), True),
        (256, (512, 256), False),
        (384, (128,), False),
        (384, (128,), True),
    ],
)
def test_pallas_has_our_values_and_gradients(
    length: int, blocks: tuple[int, ...], packed: bool, monkeypatch: pytest.MonkeyPatch
):
    """In rows of one block, and of several, whose softmax is put together."""
    monkeypatch.setattr(attention_kernels, "PALLAS_BLOCKS", blocks)
    arrays, segment_ids = draw(length), segments(length) if packed else None
    for theirs, own in zip(interpreted(arrays, segment_ids), both(in_blocks, arrays, segment_ids), strict=True):
        np.testing.assert_allclose(theirs, own, rtol=1e-4, atol=1e-5)


def test_pallas_in_bf16_is_close():
    for close, exact in zip(interpreted(draw(256, dtype="bfloat16")), both(in_blocks, draw(256), None), strict=True):
        assert close.dtype == jnp.bfloat16
        # Each of a few roundings is up to 2^-9 of what is rounded.
        assert jnp.linalg.norm(close - exact) < 2**-6 * jnp.linalg.norm(exact)


def test_on_several_devices_each_computes_its_rows_and_heads():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", __file__], env={**environment, "PYTHONPATH": str(ROOT)}, check=True)


def main() -> None:
    """Compare the divided kernels, interpreted, with our own attention, and look for copies between devices."""
    mesh = make_mesh(fsdp=2, tensor=2)
    pltpu.set_tpu_interpret_mode(True)  # in all threads: XLA divides in one of its own
    stand_in_for_cudnn()
    segment_ids = jax.device_put(segments(128), NamedSharding(mesh, PartitionSpec(ROWS)))
    for attend, dtype, own in (
        (divided(pallas), "float32", None),
        (divided(pallas), "float32", segment_ids),
        (divided(cudnn), "bfloat16", segment_ids),
    ):
        arrays = jax.device_put(draw(128, dtype=dtype), NamedSharding(mesh, PartitionSpec(ROWS, TENSOR)))
        with on_mesh_of(arrays):
            compiled = both.lower(attend, arrays, own).compile()
        program = compiled.as_text()
        assert "f32[1,1,128,64]" in program or "bf16[1,128,1,64]" in program
        names = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
        assert not [name for name in names if name in program]
        exact = both(in_blocks, draw(128), own)
        for theirs, ours in zip(compiled(arrays, own), exact, strict=True):
            if dtype == "float32":
                np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
            else:
                assert jnp.linalg.norm(theirs - ours) < 2**-6 * jnp.linalg.norm(ours)


def divided(attend: Attend) -> Attend:
    """Return attention of each device's own rows and heads."""
    return lambda q, k, v, segment_ids, scale: by_heads(partial(attend, scale=scale), q, k, v, segment_ids)


def stand_in_for_cudnn() -> None:
    """Let this process compute, by the textbook's formula, what it would tell cuDNN to."""

    def textbook(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, scale: float) -> list[jax.Array]:
        scores = jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32) * scale + bias
        scores = jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -1e30)
        out = jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(scores), v.astype(jnp.float32))
        return [out.astype(q.dtype), jax.nn.logsumexp(scores, -1)]

    def forward(*arrays: jax.Array, scale: float, mask_type: MaskType, is_training: bool, **_: Any) -> list[jax.Array]:
        assert mask_type == MaskType.CAUSAL
        return textbook(*arrays[:4], scale)[: 1 + is_training]

    def backward(
        *arrays: jax.Array, scale: float, mask_type: MaskType, variadic_args: tuple[bool, bool], **_: Any
    ) -> list[jax.Array]:
        assert mask_type == MaskType.CAUSAL
        gradients = jax.vjp(lambda *four: textbook(*four, scale)[0], *arrays[:4])[1](arrays[-1])
        return list(gradients[: 3 + variadic_args[1]])  # the bias's where it is wanted

    fused_attention_stablehlo.check_cudnn_version = lambda: 91000
    for primitive, function in (("_dot_product_attention_fwd_p", forward), ("_dot_product_attention_bwd_p", backward)):
        rule = mlir.lower_fun(function, multiple_results=True)
        mlir.register_lowering(getattr(fused_attention_stablehlo, primitive), rule, platform="cpu")


@pytest.mark.parametrize("packed", [False, True])
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
    length: int, head_dim: int, dtype: str, fitting: set[str], packed: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_kernels, "cudnn_works", lambda *_: True)
    q, segment_ids = jnp.zeros((1, 1, length, head_dim), dtype), jnp.zeros((1, length), jnp.int32) if packed else None
    # A mask's gradient takes cuDNN an even number.
    assert set(kernels(q, segment_ids, SCALE)) == (fitting if not packed or length % 2 == 0 else set())


@pytest.mark.parametrize("packed", [False, True])
def test_where_no_kernel_is_at_home_a_program_computes_the_same(packed: bool):
    arrays, segment_ids = draw(128, dtype="bfloat16"), segments(128) if packed else None
    assert "tpu" in kernels(arrays[0], segment_ids, SCALE)
    chosen = both(lambda q, k, v, seen, scale: attention(q, k, v, seen, scale=scale), arrays, segment_ids)
    for one, other in zip(chosen, both(in_blocks, arrays, segment_ids), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("backend", "rate", "dtype", "length", "line"),
    [
        ("gpu", 0.0, "bfloat16", 1024, "cuDNN's kernel"),
        ("tpu", 0.0, "bfloat16", 1024, "Pallas's kernel"),
        ("gpu", 0.1, "bfloat16", 1024, f"{DROPPING}; with --dropout 0 it is cuDNN's kernel"),
        ("cpu", 0.1, "float32", 1024, DROPPING),
        ("cpu", 0.0, "bfloat16", 1024, "XLA's, because there is no kernel for cpu"),
        ("tpu", 0.0, "float32", 1024, "XLA's, because activations are float32, not bfloat16"),
        ("tpu", 0.0, "bfloat16", 1000, "XLA's, because rows of 1000 tokens are no multiple of 128"),
        ("gpu", 0.0, "bfloat16", 1023, "XLA's, because rows of 1023 tokens are packed, and no multiple of 2"),
    ],
)
def test_which_attention_trains_is_said_with_the_reason(
    backend: str, rate: float, dtype: str, length: int, line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_kernels, "cudnn_works", lambda *_: True)
    monkeypatch.setattr(attention_kernels, "platform", lambda: backend)
    assert report(GPTConfig(attn_pdrop=rate), dtype, length, packed=True) == line


def test_a_gpu_without_cudnn_is_told_once_and_does_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = draw(128, dtype="bfloat16")
    with pytest.warns(UserWarning, match="cuDNN's attention can't be used here.*: cuDNN is not detected") as told:
        for _ in range(2):
            assert "cuda" not in kernels(arrays[0], None, SCALE)
    assert len(told) == 1


def test_a_machine_without_a_gpu_is_told_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "cuda" not in kernels(draw(128, dtype="bfloat16")[0], None, SCALE)


if __name__ == "__main__":
    main()
