"""The cost of a run: parameters by part, memory, arithmetic, and its share of the machine's peak."""

from __future__ import annotations

import re
from typing import Any

from jaxgpt.devices import describe_devices, target_devices
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig

# Dense bf16 peak in TFLOP/s of one device as JAX counts devices, without sparsity, from the vendors' data sheets; by
# the first words of `device_kind`, the longest name that fits.
PEAK_TFLOPS = {
    "NVIDIA A100": 312,
    "NVIDIA A10": 125,
    "NVIDIA B200": 2250,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "Tesla T4": 65,
    "Tesla V100": 125,
    "TPU v2": 23,
    "TPU v3": 61,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v5e": 197,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
}


def flops_per_token(config: GPTConfig, length: int) -> int:
    """Return the arithmetic of training on one token in a context of this length: 6 N + 12 L D T.

    N counts every parameter that is multiplied, so position embeddings are left out, and the embedding table counts
    once, as the LM head (Chowdhery et al. 2022, appendix B).
    """
    table = config.vocab_size * config.n_embd
    tables = {"learned": config.n_positions * config.n_embd, "sinusoidal": 0}[config.position_embedding]
    multiplied = count(config)["total"] - tables - (0 if config.tie_word_embeddings else table)
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * length


def peak_flops() -> float | None:
    """Return the peak of all devices together in FLOP/s; None where the kind is not in the table, as for a CPU."""
    devices = target_devices()
    peak = peak_of(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


def peak_of(kind: str) -> float | None:
    """Return the peak of a device of this kind, by its name in JAX, in FLOP/s; None where it is not in the table."""
    names = [name for name in PEAK_TFLOPS if re.match(rf"{name}\b", kind)]
    return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def table(config: GPTConfig, *, length: int, rows: int, compiled: Any, counted: bool) -> str:
    """Return what `--dry_run` prints.

    Args:
        config: the model.
        length: T, tokens in a row.
        rows: in one update, over all devices and micro-batches.
        compiled: the training step, for its memory on one device.
        counted: whether the arithmetic is that of next tokens over all of the model; else it is left out.
    """
    parts = count(config)
    lines = [f"{'part':<14}{'parameters':>16}{'share':>9}"]
    lines += [f"{part:<14}{n:>16,}{n / parts['total']:>9.1%}" for part, n in parts.items()]
    memory = compiled.memory_analysis()
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    flops = flops_per_token(config, length)
    arithmetic = f"{flops / 1e6:,.2f} MFLOP a token, {flops * length * rows / 1e9:,.2f} GFLOP a step"
    figures = {
        "weights in f32": f"{4 * parts['total'] / 2**20:,.1f} MiB",
        "memory of a step, state and batch": f"{state / 2**20:,.1f} MiB a device",
        "memory of a step, temporary": f"{temporary / 2**20:,.1f} MiB a device",
        **({"arithmetic": arithmetic} if counted else {}),
        "tokens per step": f"{length * rows:,} ({rows} rows of {length})",
        "devices": describe_devices(),
    }
    width = max(map(len, figures))
    return "\n".join([*lines, "", *(f"{name:<{width}}  {value}" for name, value in figures.items())])
