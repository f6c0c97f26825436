"""A decoding step compiled for devices that are not here, where the compiler is: it reads weights as they lie."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.decode.engine import decoder
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import DecodeState, decode
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.quantized import cast_matrices, quantize
from jaxgpt.plan.compiled import planning_for, target_topology, why_no_compiler
from jaxgpt.plan.targets import read_target

CONFIG = GPTConfig(n_layer=1)
SLOTS = 64
SMALLEST = CONFIG.n_embd**2  # of the model's matrices, in numbers

BF16, EIGHT_BITS = (("bf16", 1), ("bf16", 8)), (("int8", 1), ("int8", 8), ("w8a8", 1), ("w8a8", 8))


def arguments(kind: str, rows: int) -> tuple[Any, ...]:
    """Return what `decode` takes: parameters, cache, tokens so far, and where to end."""
    params = map_parameters(CONFIG, lambda parameter: jnp.zeros(parameter.shape))
    params = cast_matrices(params if kind == "bf16" else quantize(params, kind), dtype=jnp.bfloat16, rows=rows)
    start, tokens = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, SLOTS), jnp.int32)
    cache = KVCache.empty(CONFIG, start, SLOTS, jnp.bfloat16, new=False)
    keys = jax.random.split(jax.random.key(0), rows)
    progress = DecodeState(tokens, jnp.zeros(rows, bool), jnp.int32(0), keys, jnp.array([0], jnp.int32))
    return params, cache, progress, jnp.int32(32)


def written(program: str) -> list[str]:
    """Return the arrays of floats that the loop's body writes to memory, as large as a matrix or larger."""
    name = re.search(r"body=(%[\w.]+)", program)
    assert name is not None
    body = program[program.index(f"\n{name[1]} (") :].partition("\n}")[0]
    assert body.count(" fusion(") > 10
    arrays = re.findall(r"(\w+)\[([\d,]+)\]", "".join(re.findall(r" = (.*?) fusion\(", body)))
    return [
        f"{dtype}[{shape}]"
        for dtype, shape in arrays
        if dtype in ("bf16", "f32") and math.prod(map(int, shape.split(","))) >= SMALLEST
    ]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [*(("h100:1", *how) for how in BF16 + EIGHT_BITS), *(("v5e:2x2", *how) for how in EIGHT_BITS)],
)
def test_no_step_writes_its_weights_anew(name: str, kind: str, rows: int):
    target = read_target(name)
    if why := why_no_compiler(target):
        pytest.skip(why)
    devices = target_topology(target)
    with planning_for(target, devices):
        given = jax.eval_shape(partial(arguments, kind, rows))
        place = jax.sharding.SingleDeviceSharding(devices[0])
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), given)
        program = decode.lower(decoder(CONFIG, jnp.bfloat16), Sampling(), *given).compile().as_text()
    assert written(program) == []
