"""Plain matrix products in JAX and in PyTorch, so that a reader sees what of the other rows is the library's below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from benchmarks.timing import Benchmark, Result, Work
from jaxgpt.devices import start_devices

# Rows, inputs and outputs: of a feed-forward layer of the recipe `char` and of the default model, and a large one.
SHAPES = {(2048, 384, 1536): 40, (768, 128, 512): 400, (4096, 4096, 4096): 1}


def benchmarks() -> list[Benchmark]:
    return [_benchmark(shape, units) for shape, units in SHAPES.items()]


def _benchmark(shape: tuple[int, int, int], units: int) -> Benchmark:
    rows, inputs, outputs = shape
    return Benchmark(
        f"calibration-{rows}",
        f"a linear layer's three products, forward and backward, {rows} × {inputs} × {outputs} in f32",
        "layer",
        units,
        {"JAX": partial(_jax, shape, units), "PyTorch": partial(_pytorch, shape, units)},
        remark=partial(_rates, shape),
    )


def _rates(shape: tuple[int, int, int], results: Sequence[Result]) -> str:
    rates = (f"{result.contestant} {6 * np.prod(shape) / result.median / 1e9:.0f}" for result in results)
    return f"GFLOP/s: {', '.join(rates)}"


def _operands(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Return x, W and the gradient of x W."""
    rows, inputs, outputs = shape
    draw = np.random.default_rng(0).standard_normal
    return [draw(size, dtype=np.float32) for size in ((rows, inputs), (inputs, outputs), (rows, outputs))]


def _jax(shape: tuple[int, int, int], units: int) -> Work:
    start_devices("cpu")
    operands = jax.device_put(_operands(shape))
    products = [jax.jit(lambda x, w, d: x @ w), jax.jit(lambda x, w, d: d @ w.T), jax.jit(lambda x, w, d: x.T @ d)]

    def work() -> None:
        for _ in range(units):
            jax.block_until_ready([product(*operands) for product in products])

    return work


def _pytorch(shape: tuple[int, int, int], units: int) -> Work:
    import torch

    x, w, d = map(torch.from_numpy, _operands(shape))

    def work() -> None:
        for _ in range(units):
            _ = torch.mm(x, w), torch.mm(d, w.T), torch.mm(x.T, d)

    return work
