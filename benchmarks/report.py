"""What was measured, on what and with what, as Markdown."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import Result

PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "ctranslate2")


def about(argv: Sequence[str]) -> str:
    """Return date, command, machine and versions."""
    load = os.getloadavg()[0]
    # OpenMP's threads wait for one another: other work slows PyTorch and CTranslate2 many times more than XLA.
    busy = "; **the machine was busy, so these figures mean nothing**" if load > 0.5 else ""
    return (
        f"- {date.today()}: `{shlex.join(['python', '-m', 'benchmarks', *argv])}`\n"
        f"- {_cpu()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}; load before {load:.2f}{busy}\n"
        f"- Python {platform.python_version()}, {', '.join(map(_version, PACKAGES))}\n"
    )


def table(results: Sequence[Result]) -> str:
    """Return a benchmark's results, ours first; of ratios below 1, ours is the faster or the smaller."""
    benchmark, ours = results[0].benchmark, results[0]
    lines: list[tuple[str, ...]] = [
        ("", f"best per {benchmark.unit}", "median", "tokens/s", "memory", "ours / theirs: best", "median", "memory")
    ]
    for result in results:
        if result.failure is not None:
            lines.append((result.contestant, "failed", "", "", "", "", "", ""))
            continue
        speed = "" if benchmark.tokens is None else f"{benchmark.tokens / result.median:,.0f}"
        memory = "" if result.memory is None else f"{result.memory / 2**20:,.0f} MiB"
        ratios = ("", "", "")
        if result is not ours and ours.failure is None:
            share = "" if ours.memory is None or result.memory is None else _ratio(ours.memory / result.memory)
            ratios = (_ratio(ours.best / result.best), _ratio(ours.median / result.median), share)
        contestant = ", ".join(filter(None, (result.contestant, result.detail)))
        lines.append((contestant, _time(result.best), _time(result.median), speed, memory, *ratios))
    below = failures(results)
    if benchmark.remark is not None and not below:
        below = [benchmark.remark(results)]
    return "\n\n".join([f"**{benchmark.name}**: {benchmark.what}", grid(lines), *below]) + "\n"


def failures(results: Sequence[Result]) -> list[str]:
    """Return a line for each contestant that could not run."""
    return [f"{result.contestant} failed: {result.failure}" for result in results if result.failure is not None]


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, headings first, as a table."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty or only "x86_64" on Linux
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor() or platform.machine()
