"""`python -m benchmarks [NAME …]`: measure, print what comes out, and write it down."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import (
    bpe,
    calibration,
    classics,
    continuous,
    decode,
    evaluation,
    finetune,
    gpu,
    layout,
    overhead,
    quality,
    quantized,
    report,
    roofline,
    shapes,
    speculative,
    startup,
    tokenise,
    train,
    waits,
)
from benchmarks.timing import measure
from jaxgpt.errors import did_you_mean

MODULES = (
    calibration,
    train,
    decode,
    quantized,
    shapes,
    continuous,
    speculative,
    evaluation,
    bpe,
    tokenise,
    startup,
    overhead,
    finetune,
    layout,
    classics,
    gpu,
)
BENCHMARKS = [benchmark for module in MODULES for benchmark in module.benchmarks()]
GROUPS = (
    "calibration",
    "train",
    "decode",
    "speculative",
    "evaluate",
    "tokenise",
    "startup",
    "overhead",
    "layout",
    "classics",
    "classics-attention",
    "int8",
    gpu.NAME,
)
NAMES = (*GROUPS, "quality", *(benchmark.name for benchmark in BENCHMARKS), roofline.NAME, quantized.NAME, waits.NAME)
BY_DEFAULT = (
    "calibration",
    "train",
    "decode",
    "int8",
    "continuous",
    "speculative",
    "evaluate",
    "bpe",
    "startup",
    "overhead",
    "finetune",
    "classics",
    "quality",
)


def main(argv: Sequence[str]) -> None:
    """Run what is asked for; exit with 1 if a contestant could not run, or the runs for quality differ."""
    options = parse(argv)
    # For all processes that begin from here.
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    text, passed = "# Results\n", True
    for part, fine in parts(argv, options):
        print(part, flush=True)
        text, passed = f"{text}\n{part}", passed and fine
        options.out.write_text(text, encoding="utf-8")
    sys.exit(0 if passed else 1)


def parts(argv: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    """Yield the report's parts as they are ready, each with whether all went well."""
    yield report.about(argv), True
    for benchmark in BENCHMARKS:
        groups = [group for group in GROUPS if benchmark.name.startswith(f"{group}-")]
        if not set(options.names).isdisjoint((benchmark.name, *groups)):
            results = measure(benchmark, options.repeats)
            yield report.table(results), all(result.failure is None for result in results)
    if {"classics", roofline.NAME} & set(options.names):
        yield roofline.compare(options.repeats, options.out.parent)
    if {"int8", quantized.NAME} & set(options.names):
        yield quantized.compare(options.repeats)
    if {"startup", waits.NAME} & set(options.names):
        yield waits.compare(options.repeats)
    if "quality" in options.names:
        outcome = quality.compare(options.updates)
        yield f"{outcome}\n", outcome.passed


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: {' '.join(BY_DEFAULT)})"
    )
    parser.add_argument("--repeats", type=int, metavar="N", default=10, help="rounds of each contestant (default: 10)")
    parser.add_argument(
        "--updates", type=int, metavar="N", default=2000, help="in the runs for quality (default: 2000)"
    )
    parser.add_argument("--quick", action="store_true", help="2 repeats and 100 updates: not for figures")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="(default: benchmarks/results.md; of a GPU's alone benchmarks/results-gpu.md)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}{did_you_mean(name, NAMES)}")
    if min(options.repeats, options.updates) < 1:
        parser.error("--repeats and --updates must be at least 1")
    options.names = options.names or BY_DEFAULT
    on_gpu = all(name.startswith(gpu.NAME) for name in options.names)
    options.out = options.out or Path(__file__).with_name("results-gpu.md" if on_gpu else "results.md")
    if options.quick:
        options.repeats, options.updates = 2, 100
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
