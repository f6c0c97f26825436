"""Decoding with weights of few bits: against CTranslate2's, and what the bits cost in bytes, time and accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from benchmarks import decode
from benchmarks.report import failures, grid
from benchmarks.timing import Benchmark, apart, last, measure
from benchmarks.train import CPU, train_ours
from jaxgpt import GPT, GPTConfig
from jaxgpt.evaluate import Document, Scorer, measure_texts
from jaxgpt.model.quantized import Kind, quantize

NAME = "int8-weights"
KINDS: dict[str, Kind | None] = {"f32": None, "bf16": None, "int8": "int8", "w8a8": "w8a8", "int4": "int4"}
DTYPES = {"bf16": "bfloat16"}  # of weights and activations; of the others f32
ROUNDS = 5  # at most
ROWS, LENGTH = 4, 128  # tokens whose successors are predicted
SHARPER = 5  # to spread logits as far as a trained model's
UPDATES = 500


def benchmarks() -> list[Benchmark]:
    return [_against_ctranslate2(kind, rows) for kind in ("int8", "w8a8") for rows in (1, 8)]


def _against_ctranslate2(kind: Kind, rows: int) -> Benchmark:
    """Compare with CTranslate2's int8, which rounds activations as "w8a8" does."""
    makers = {"jaxgpt": partial(decode.ours, kind=kind), "CTranslate2": partial(decode.ctranslate2, kind="int8")}
    name = f"int8-{rows}" if kind == "int8" else f"int8-{rows}-{kind}"
    return decode.benchmark(name, f"GPT-2 124M, {kind}", rows, makers)


def compare(repeats: int) -> tuple[str, bool]:
    """Return a table of what fewer bits cost, and gain, and whether all ran."""
    makers = {name: partial(decode.ours, kind=kind, dtype=_dtype(name)) for name, kind in KINDS.items()}
    results = measure(decode.benchmark(NAME, "GPT-2 124M, random weights", 1, makers), min(repeats, ROUNDS))
    sizes, divergences, scores = apart(_accuracy)
    figures = ("perplexity", "bits_per_byte")
    heads = [*(f"KL, {model}" for model in divergences), *(f"{figure}, trained" for figure in figures)]
    lines = [["weights", "MB", "tokens/s", *heads]]
    for result in results:
        name, fine = result.contestant, result.failure is None
        rate = f"{decode.NEW_TOKENS / result.median:.1f}" if fine else "failed"
        costs = (f"{model[name]:.1e}" for model in divergences.values())
        quality = (f"{scores[name][figure]:.4f}" for figure in figures)
        lines.append([name, f"{sizes[name] / 1e6:.0f}", rate, *costs, *quality])
    head = (
        f"**{NAME}**: {results[0].benchmark.what}; mean KL divergence of next-token distributions from "
        f"those in f32: of these weights as they are, which predict next to nothing; {SHARPER} times sharper; and of "
        f"the small model after {UPDATES} updates of `train.py`'s default run, on its validation text; and that "
        "model's perplexity and bits per byte on all of it, as `python -m jaxgpt.evaluate` has them"
    )
    below = failures(results)
    return "\n\n".join([head, grid(lines), *below]) + "\n", not below


def _accuracy() -> tuple[dict[str, int], dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return for each kind the bytes of the 124M; by model each kind's KL divergence; for each kind its figures."""
    stage, states = train_ours(CPU)
    trained = last(states, UPDATES).params
    params, tokens = decode.random_params(), jnp.asarray(decode.random_prompts(ROWS, LENGTH))
    sharp = {**params, "ln_f": {**params["ln_f"], "scale": params["ln_f"]["scale"] * SHARPER}}
    divergences = {
        "random": _divergences(decode.CONFIG, params, tokens),
        f"{SHARPER} × sharper": _divergences(decode.CONFIG, sharp, tokens),
        "trained": _divergences(stage.config, trained, jnp.asarray(next(stage.eval_batches()).tokens)),
    }
    shapes = {name: jax.eval_shape(partial(_rounded, name=name), params) for name in KINDS}
    sizes = {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    return sizes, divergences, _scores(stage, trained)


def _scores(stage: Any, params: Any) -> dict[str, dict[str, float]]:
    """Return for each kind the figures of a trained model on all of its validation text."""
    found = {}
    for name in KINDS:
        scorer = Scorer(stage.config, _rounded(params, name), stage.tokenizer, batch_size=64, dtype=_dtype(name))
        found[name] = measure_texts(scorer, [Document(stage.corpus.val, 1, None)]).metrics()
    return found


def _divergences(config: GPTConfig, params: Any, tokens: Int[Array, "B T"]) -> dict[str, float]:
    log_probs = {}
    for name in KINDS:
        apply: Any = jax.jit(GPT(config, jnp.dtype(_dtype(name))).apply)
        log_probs[name] = jax.nn.log_softmax(apply({"params": _rounded(params, name)}, tokens)[0])
    exact = log_probs["f32"]
    return {name: float((jnp.exp(exact) * (exact - rounded)).sum(-1).mean()) for name, rounded in log_probs.items()}


def _rounded(params: Any, name: str) -> Any:
    kind = KINDS[name]
    if kind is None:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, _dtype(name)), params)
    return quantize(params, kind)


def _dtype(name: str) -> str:
    return DTYPES.get(name, "float32")
