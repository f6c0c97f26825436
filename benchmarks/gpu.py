"""One GPU in bf16: training against PyTorch, decoding against transformers, as their users write them.

`python -m benchmarks gpu` needs no network, and nothing installed but JAX with CUDA and PyTorch: PYTHONPATH=. does.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from benchmarks import decode
from benchmarks.timing import Benchmark, DeviceWork, Result, Work, apart, last, run_python
from benchmarks.train import OURS, PYTORCH, begin, describe, sizes, train_ours, train_pytorch
from jaxgpt.data.download import DOWNLOADS
from jaxgpt.data.opening import default_cache_dir
from jaxgpt.data.packing import pack
from jaxgpt.devices import start_devices
from jaxgpt.errors import out_of_memory
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train.budget import flops_per_token, peak_flops
from jaxgpt.train.loop import run

W = TypeVar("W", bound=Work)
NAME = "gpu"
SMALL = PretrainConfig(preset="gpt2", tokenizer="gpt2", dropout=0.0, dtype="bfloat16")
MEDIUM = replace(SMALL, preset="gpt2-medium")
TOKENS = 2**17  # in a round, in as few updates as the memory allows
ROWS = (128, 64, 32, 16, 8, 4, 2, 1)
DECODED = (1, 8, 64)
# In logits, of which random weights' have a deviation of 0.6: how far below f32's best what bf16 takes for it may be.
ALLOWED = 0.1
READ = 2**31  # bytes, by which the memory's speed is measured


def benchmarks(device: str = "cuda") -> list[Benchmark]:
    """Return what is measured: on a GPU, or in tests on a CPU."""
    return [
        _recipe(device),
        training("gpu-train-124m", SMALL, device),
        training("gpu-train-350m", MEDIUM, device),
        training("gpu-train-124m-dropout", replace(SMALL, dropout=0.1), device),
        packing("gpu-train-124m-packed", SMALL, device),
        *(
            decoding(f"gpu-decode-{name}-{rows}", GPTConfig.preset(preset), rows, device)
            for name, preset in (("124m", "gpt2"), ("xl", "gpt2-xl"))
            for rows in DECODED
        ),
    ]


def training(name: str, flags: PretrainConfig, device: str, tokens: int = TOKENS) -> Benchmark:
    """Compare steps at the largest number of rows that fits each."""
    makes = {
        OURS: partial(fitting, partial(_ours, flags, tokens, device), tokens // sizes(flags)[1]),
        PYTORCH: partial(fitting, partial(_pytorch, flags, tokens, device), tokens // sizes(flags)[1]),
    }
    what = f"{describe(flags, 'the largest batch that fits')}, bf16"
    remark = partial(_utilisation, flags, device)
    return Benchmark(name, what, f"{tokens:,} tokens", 1, makes, tokens=tokens, alone=True, remark=remark)


def packing(name: str, flags: PretrainConfig, device: str, tokens: int = TOKENS) -> Benchmark:
    """Compare rows of packed documents, which don't see one another, with rows of one text."""
    rows = tokens // sizes(flags)[1]
    makes = {
        f"{OURS}, documents of 16 to {sizes(flags)[1]:,} tokens": partial(
            fitting, partial(_packed, flags, tokens, device), rows
        ),
        f"{OURS}, one text a row": partial(fitting, partial(_ours, flags, tokens, device), rows),
    }
    what = f"{describe(flags, 'the largest batch that fits')}, bf16, padding counted"
    return Benchmark(name, what, f"{tokens:,} tokens", 1, makes, tokens=tokens, alone=True)


def decoding(
    name: str,
    config: GPTConfig,
    rows: int,
    device: str,
    *,
    length: int = decode.PROMPT,
    new_tokens: int = decode.NEW_TOKENS,
    compiled: bool = True,
) -> Benchmark:
    """Compare `generate` with that of transformers, in bf16, and with our weights of 8 bits."""
    ours = partial(decode.ours, config=config, device=device, dtype="bfloat16")
    how = {"cache_implementation": "static"} if compiled else {}
    makers: dict[str, decode.Maker] = {
        OURS: ours,
        "transformers, static cache": partial(
            decode.hugging_face, config=config, device=device, dtype="bfloat16", **how
        ),
        f"{OURS}, int8": partial(ours, kind="int8"),
    }
    model = f"{config.n_layer} layers of width {config.n_embd}"
    return Benchmark(
        name,
        f"{model}, batch {rows}, prompt {length}, {new_tokens} new tokens, bf16",
        "call",
        1,
        {who: partial(_decoder, make, rows, length, new_tokens, device) for who, make in makers.items()},
        tokens=rows * new_tokens,
        alone=True,
        remark=partial(_decoded, makers, config, rows, length, new_tokens, device),
    )


def fitting(make: Callable[[int], W], most: int) -> W:
    """Return what `make` makes of the largest number of rows whose first round the memory holds."""
    for rows in (rows for rows in ROWS if rows <= most):
        try:
            work = make(rows)
            work()
            return work
        except Exception as error:
            if rows == 1 or not (out_of_memory(error) or "out of memory" in str(error)):
                raise
        gc.collect()
    raise ValueError(f"most is {most}; it must be at least 1")


def gaps(config: GPTConfig, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: str) -> float:
    """Return how many logits a greedy choice lies below the best at most, by transformers' model in f32."""
    import torch

    model = decode.hugging_face_model(config).to(device)
    worst = 0.0
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = model(torch.tensor([[*prompt, *answer]], device=device)).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]
            worst = max(worst, float((logits.max(1).values - chosen).max()))
    return worst


def _ours(flags: PretrainConfig, tokens: int, device: str, rows: int) -> DeviceWork:
    import jax

    _, states = train_ours(replace(flags, batch_size=rows), device)
    updates = tokens // (rows * sizes(flags)[1])
    return DeviceWork(lambda: jax.block_until_ready(last(states, updates)), _peak_of_jax, lambda: f"{rows} rows")


def _packed(flags: PretrainConfig, tokens: int, device: str, rows: int) -> DeviceWork:
    import jax

    start_devices(device)
    length = sizes(flags)[1]
    stage, trainer = begin(replace(flags, batch_size=rows))
    draw = np.random.default_rng(0)
    documents: list[Any] = []
    while sum(map(len, documents)) < rows * length:
        documents.append(draw.integers(sizes(flags)[0].vocab_size, size=draw.integers(16, length + 1)))
    batch = trainer.put(jax.tree.map(lambda leaf: leaf[:rows], pack(documents, length=length)))
    steps = run(trainer.step, trainer.start(stage.init_params), lambda step: batch, until=2**62)
    updates = tokens // (rows * length)
    return DeviceWork(
        lambda: jax.block_until_ready(last((state for _, state, _ in steps), updates)),
        _peak_of_jax,
        lambda: f"{rows} rows",
    )


def _pytorch(flags: PretrainConfig, tokens: int, device: str, rows: int) -> DeviceWork:
    _, _, losses = train_pytorch(replace(flags, batch_size=rows), device)
    updates = tokens // (rows * sizes(flags)[1])
    return DeviceWork(lambda: last(losses, updates).item(), partial(_peak_of_torch, device), lambda: f"{rows} rows")


def _decoder(make: decode.Maker, rows: int, length: int, new_tokens: int, device: str) -> DeviceWork:
    work = decode.checked(make, rows, length, new_tokens)
    of_torch = getattr(make, "func", make) is decode.hugging_face
    return DeviceWork(work, partial(_peak_of_torch, device) if of_torch else _peak_of_jax, lambda: "")


def _recipe(device: str) -> Benchmark:
    data = "shakespeare" if _has_shakespeare() else "plays"
    return Benchmark(
        "gpu-char",
        f"the recipe shakespeare_char on the data set {data!r} as a process, from start to end; of nanoGPT its authors "
        "report a best validation loss of 1.4697 on 'shakespeare', and about three minutes on an A100",
        "run",
        1,
        {OURS: partial(_run_recipe, data, device)},
        rounds=1,
    )


def _run_recipe(data: str, device: str) -> DeviceWork:
    losses: list[float] = []

    def work() -> None:
        with TemporaryDirectory() as folder:
            flags = ["--config", "shakespeare_char", "--dataset", data, "--out_dir", f"{folder}/run"]
            run_python("train.py", *flags, "--device", device)
            rows = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
            losses.append(min(row["loss"] for row in rows if row["split"] == "val"))

    return DeviceWork(work, lambda: None, lambda: f"best validation loss {losses[-1]:.4f}")


def _has_shakespeare() -> bool:
    origin = DOWNLOADS["shakespeare"]
    return Path(default_cache_dir(), "downloads", getattr(origin, "file", "")).is_file()


def _utilisation(flags: PretrainConfig, device: str, results: Sequence[Result]) -> str:
    """Return each contestant's share of the peak, and its seconds to the first round's end."""
    config, length = sizes(flags)
    kind, peak, _ = apart(_about, device)
    work = flops_per_token(config, length)
    parts = []
    for result in results:
        rate = (result.benchmark.tokens or 0) / result.median * work
        share = "" if peak is None else f" ({rate / peak:.1%} of the peak)"
        parts.append(f"{result.contestant} {rate / 1e12:.3g} TFLOP/s{share}, first round after {result.first:.1f} s")
    return f"On {kind}, at 6 N + 12 L D T = {work / 1e6:,.0f} MFLOP a token: {'; '.join(parts)}."


def _decoded(
    makers: dict[str, decode.Maker],
    config: GPTConfig,
    rows: int,
    length: int,
    new_tokens: int,
    device: str,
    results: Sequence[Result],
) -> str:
    """Return how well the contestants' tokens agree with f32's, and what share of the memory's speed they use."""
    prompts = decode.random_prompts(rows, length)
    kind, _, speed = apart(_about, device)
    parts = []
    for result in results:
        answers = apart(_answers, makers[result.contestant], prompts, new_tokens)
        gap = apart(gaps, config, prompts, answers, device)
        if gap > ALLOWED and "int8" not in result.contestant:
            raise RuntimeError(f"{result.contestant}: a token is {gap:.3f} logits below the best; allowed: {ALLOWED}")
        moved = _bytes_of_weights(config, int8="int8" in result.contestant) * new_tokens / result.median
        parts.append(
            f"{result.contestant} {moved / 1e9:,.1f} GB/s of weights ({moved / speed:.0%}), its tokens at most "
            f"{gap:.3f} logits below the best in f32, first call after {result.first:.1f} s"
        )
    return f"On {kind}, whose memory is read at {speed / 1e9:,.0f} GB/s: {'; '.join(parts)}."


def _answers(make: decode.Maker, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    return make(prompts, new_tokens)()


def _bytes_of_weights(config: GPTConfig, *, int8: bool) -> int:
    """Return what a token reads: all matrices once, with the embedding as the head, but no embedding row by row."""
    multiplied = count(config)["total"] - config.n_positions * config.n_embd
    return multiplied * (1 if int8 else 2)


def _about(device: str) -> tuple[str, float | None, float]:
    """Return the device's kind, its peak in FLOP/s, and the speed in bytes a second at which it reads its memory."""
    import jax
    import jax.numpy as jnp

    start_devices(device)
    array = jnp.ones(READ // 64 if device == "cpu" else READ // 2, jnp.bfloat16)
    total = jax.jit(lambda values: values.max())
    total(array).block_until_ready()
    start = time.perf_counter()
    jax.block_until_ready([total(array) for _ in range(10)])
    return jax.devices()[0].device_kind, peak_flops(), 10 * array.nbytes / (time.perf_counter() - start)


def _peak_of_jax() -> int | None:
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _peak_of_torch(device: str) -> int | None:
    import torch

    return None if device == "cpu" else torch.cuda.max_memory_allocated()
