"""Where prefill and decoding stand under the machine's roofline (Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from benchmarks import decode, report, shapes
from benchmarks.timing import Benchmark, Work, measure
from jaxgpt import GPT, GPTConfig
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import prefill
from jaxgpt.devices import start_devices

NAME = "classics-roofline"
ROUNDS = 5  # at most
PROMPT, SLOTS, BATCHES = 1024, 1040, (1, 8, 64)
POSITION = 496  # decoding reads a cache of 512 slots
SIDE = 4096  # of the product that gives the machine's peak
SHAPE = (16384, 16384)  # of the matrix whose product with a vector gives its bandwidth: 1 GiB, more than caches hold


@dataclass(frozen=True)
class Load:
    """What a program computes and reads.

    Attributes:
        flops: of its matrix products, two for a multiplication and an addition.
        read: bytes that come from memory at least once.
    """

    flops: float
    read: float

    @property
    def intensity(self) -> float:
        """FLOPs for a byte."""
        return self.flops / self.read


@dataclass(frozen=True)
class Roof:
    """What the machine can do at most.

    Attributes:
        flops: a second, in a product of large matrices.
        read: bytes a second, in a product of a large matrix and a vector.
    """

    flops: float
    read: float

    @property
    def ridge(self) -> float:
        """The intensity from which on arithmetic is the bound, and no longer memory."""
        return self.flops / self.read

    def attainable(self, intensity: float) -> float:
        """Return the FLOPs a second that a program of this intensity can reach."""
        return min(self.flops, intensity * self.read)


def model_load(config: GPTConfig, rows: int, count: int, slots: int) -> Load:
    """Count what it takes to read `count` tokens a row and to choose one more, in f32 with a cache of `slots`.

    All slots are attended to, filled or not, as the program does. Weights and cache are read once; activations, biases
    and layer norms are left out.
    """
    matrices = config.n_layer * config.n_embd * (4 * config.n_embd + 2 * config.inner_dim)
    head = config.vocab_size * config.n_embd
    cache = 2 * config.n_layer * rows * slots * config.n_embd
    return Load(2 * rows * (count * matrices + head) + 2 * count * cache, 4 * (matrices + head + cache))


def compare(repeats: int, folder: Path) -> tuple[str, bool]:
    """Measure machine and model in turns, and draw them as `roofline.png`.

    Returns:
        A table, and whether all could run.
    """
    side, read = 2.0 * SIDE**3, 4.0 * SHAPE[0] * SHAPE[1]
    works = {
        "product": _product,
        "reading": _reading,
        "prefill": _prefill,
        **{_decoding(rows): partial(shapes.at, POSITION, rows) for rows in BATCHES},
    }
    what = (
        f"GPT-2 124M in f32: a prefill of {PROMPT:,} tokens, and decoding in a cache of {POSITION + shapes.STEPS} slots"
    )
    results = measure(Benchmark(NAME, what, "round", 1, works, rounds=ROUNDS), repeats)
    if failures := report.failures(results):
        return "\n".join([f"**{NAME}**: {what}", *failures]) + "\n", False
    seconds = {result.contestant: result.best for result in results}
    roof = Roof(side / seconds["product"], read / seconds["reading"])
    config = decode.CONFIG
    points = {"prefill": (load := model_load(config, 1, PROMPT, SLOTS), load.flops / seconds["prefill"])}
    for rows in BATCHES:
        load = model_load(config, rows, 1, POSITION + shapes.STEPS)
        points[_decoding(rows)] = load, load.flops * shapes.STEPS / seconds[_decoding(rows)]
    draw(roof, points, folder / "roofline.png")
    lines = [("", "GFLOP", "MB read", "FLOP/byte", "GFLOP/s: at most", "reached", "share")]
    for name, (load, reached) in points.items():
        most = roof.attainable(load.intensity)
        lines.append(
            (
                name,
                f"{load.flops / 1e9:,.2f}",
                f"{load.read / 1e6:,.0f}",
                f"{load.intensity:.2f}",
                f"{most / 1e9:.1f}",
                f"{reached / 1e9:.1f}",
                f"{reached / most:.0%}",
            )
        )
    machine = (
        f"The machine: {roof.flops / 1e9:.0f} GFLOP/s in a product of {SIDE:,} × {SIDE:,} matrices, "
        f"{roof.read / 1e9:.1f} GB/s in that of a matrix of {read / 2**30:.0f} GiB and a vector; so arithmetic is the "
        f"bound from {roof.ridge:.1f} FLOP/byte on. Of the model, weights and cache are counted, read once a step."
    )
    return f"**{NAME}**: {what}\n\n{report.grid(lines)}\n\n{machine}\n\n![roofline](roofline.png)\n", True


def draw(roof: Roof, points: dict[str, tuple[Load, float]], path: Path) -> None:
    """Draw the roof, and each program's intensity and the FLOPs a second that it reached, by name."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    intensities = [load.intensity for load, _ in points.values()]
    ends = min(*intensities, roof.ridge) / 3, max(*intensities, roof.ridge) * 3
    corners = (ends[0], roof.ridge, ends[1])
    roofline = f"the roof: {roof.flops / 1e9:.0f} GFLOP/s, {roof.read / 1e9:.1f} GB/s"
    axes.loglog(corners, [roof.attainable(x) / 1e9 for x in corners], color="black", label=roofline)
    for name, (load, reached) in points.items():
        axes.plot(load.intensity, reached / 1e9, "o", label=name)
        axes.vlines(load.intensity, reached / 1e9, roof.attainable(load.intensity) / 1e9, colors="grey", linestyles=":")
    axes.set(xlabel="arithmetic intensity, FLOP/byte", ylabel="GFLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _decoding(rows: int) -> str:
    return f"a decode step, batch {rows}"


def _product() -> Work:
    start_devices("cpu")
    left, right = (jax.random.normal(key, (SIDE, SIDE)) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right).block_until_ready()


def _reading() -> Work:
    start_devices("cpu")
    matrix, vector = jnp.ones(SHAPE), jnp.ones(SHAPE[1])
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, vector).block_until_ready()


def _prefill() -> Work:
    start_devices("cpu")
    params, model = decode.random_params(), GPT(decode.CONFIG)
    begin = shapes.progress(decode.random_prompts(1, SLOTS))
    start = jnp.zeros(1, jnp.int32)

    def work() -> None:
        _, read = prefill(model, Sampling(), params, begin, start, width=PROMPT)
        read.tokens.block_until_ready()

    return work
