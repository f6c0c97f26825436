"""Decoding with weights of few bits: against CTranslate2's, and what the bits cost in bytes, time and accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import decode
from benchmarks.timing import Benchmark, apart, measure
from jaxgpt import GPT
from jaxgpt.decode.quantize import Kind, quantize
from jaxgpt.devices import start_devices

NAME = "int8-weights"
KINDS: dict[str, Kind | None] = {"f32": None, "int8": "int8", "int4": "int4"}
ROUNDS = 5  # at most
ROWS, LENGTH = 4, 128  # tokens whose successors are predicted
SHARPER = 5


def benchmarks() -> list[Benchmark]:
    makers = {"jaxgpt": decode.ours, "CTranslate2": decode.ctranslate2}
    return [
        Benchmark(
            f"int8-{rows}",
            f"GPT-2 124M, int8, batch {rows}, prompt {decode.PROMPT}, {decode.NEW_TOKENS} new tokens",
            "call",
            1,
            {name: partial(_contestant, partial(make, kind="int8"), rows) for name, make in makers.items()},
            tokens=rows * decode.NEW_TOKENS,
        )
        for rows in (1, 8)
    ]


def _contestant(make: decode.Maker, rows: int) -> Any:
    return decode.checked(make, rows, decode.PROMPT, decode.NEW_TOKENS)


def compare(repeats: int) -> tuple[str, bool]:
    """Return a table of what fewer bits cost, and gain, and whether all ran."""
    contestants = {name: partial(_contestant, partial(decode.ours, kind=kind), 1) for name, kind in KINDS.items()}
    speed = Benchmark(NAME, "", "call", 1, contestants, tokens=decode.NEW_TOKENS)
    results = measure(speed, min(repeats, ROUNDS))
    entropy, found = apart(_accuracy)
    lines = [
        f"**{NAME}**: GPT-2 124M, random weights, batch 1; KL divergence from f32 of {ROWS * LENGTH} "
        f"next-token distributions, {SHARPER} times sharper as random weights' are nearly flat: {entropy:.1f} nats",
        "",
        "| weights | MB | tokens/s | mean KL |",
        "|---------|----|----------|---------|",
    ]
    for result in results:
        cost = found[result.contestant]
        rate = "failed" if result.failure is not None else f"{decode.NEW_TOKENS / result.median:.1f}"
        lines.append(f"| {result.contestant} | {cost.size / 1e6:.0f} | {rate} | {cost.kl:.1e} |")
    return "\n".join(lines) + "\n", all(result.failure is None for result in results)


@dataclass(frozen=True)
class _Cost:
    """What weights cost: bytes, and mean KL divergence from f32."""

    size: int
    kl: float


def _accuracy() -> tuple[float, dict[str, _Cost]]:
    """Return the mean entropy in f32, and each kind's cost."""
    start_devices("cpu")
    params = decode.random_params()
    params["ln_f"]["scale"] *= SHARPER
    tokens = jnp.asarray(decode.random_prompts(ROWS, LENGTH))
    apply: Any = jax.jit(GPT(decode.CONFIG).apply)

    def log_probs(params: Any) -> jax.Array:
        return jax.nn.log_softmax(apply({"params": params}, tokens)[0])

    exact = log_probs(params)
    costs = {}
    for name, kind in KINDS.items():
        narrow = params if kind is None else quantize(params, kind)
        kl = (jnp.exp(exact) * (exact - log_probs(narrow))).sum(-1).mean()
        costs[name] = _Cost(sum(leaf.nbytes for leaf in jax.tree.leaves(narrow)), float(kl))
    return float(-(jnp.exp(exact) * exact).sum(-1).mean()), costs
