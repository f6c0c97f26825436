"""`python -m benchmarks.plans`: docs/scaling.md's tables of plans, as `train.py --plan` computes them.

An update has 512 rows of 1,024 tokens in bfloat16 without dropout. Of all micro-batches, with remat and without, the
one whose best mesh fits and takes the least time is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
TARGETS = ("h100:1", "h100:8", "v5e:4x4", "v6e:8x8")
ROWS, TOKENS = 512, 10e9
POD = ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16")


def main() -> None:
    """Print both tables."""
    print("| model | devices | best mesh | micro-batch, remat | GiB a device | MFU at best | hours for 10B tokens |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for target in TARGETS:
            print(best_row(model, target), flush=True)
    print("\n| devices | " + " | ".join(POD) + " |")
    print("|---|" + "---|" * len(POD))
    for axis in ("data", "fsdp"):
        print(f"| {axis} | " + " | ".join(f"{sent_mib(axis, name):,.0f}" for name in POD) + " |")


def best_row(model: str, name: str) -> str:
    """Return a table's row for a model on a target."""
    from jaxgpt.plan import Work, estimates, read_target

    target, found = read_target(name), []
    for remat in (False, True):
        for micro in (2**n for n in range(10) if 2**n <= ROWS):
            platform = target.chip.platform
            work = Work(config_of(model), micro, 1024, ROWS // micro, remat=remat, platform=platform)
            if work.rows % target.count == 0:
                found.append((estimates(work, target)[0], work))
    fitting = [one for one in found if one[0].fits]
    if not fitting:
        return f"| {model} | {name} | none fits | | | | |"
    # Of equal times the least memory.
    best, work = min(fitting, key=lambda one: (round(one[0].mfu, 2) * -1, one[0].bytes))
    hours = TOKENS / work.tokens * best.step / 3600
    row = f"{best.mesh} | {work.rows}{', remat' if work.remat else ''} | {best.bytes / 2**30:.1f} | {best.mfu:.0%}"
    return f"| {model} | {name} | {row} | {hours:,.1f} |"


def sent_mib(axis: str, name: str) -> float:
    """Return the MiB that a device sends in an update of GPT-2 124M, with 8 rows of each device, along one axis."""
    from jaxgpt.plan import Sizes, Work, read_target
    from jaxgpt.plan.costs import sent

    count = read_target(name).count
    mesh = Sizes(data=count) if axis == "data" else Sizes(fsdp=count)
    return sum(one.bytes for one in sent(Work(config_of("gpt2"), 8 * count, 1024), mesh)) / 2**20


def config_of(model: str) -> Any:
    """Return a preset's config, without dropout."""
    from jaxgpt.model.config import GPTConfig

    return replace(GPTConfig.preset(model), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


if __name__ == "__main__":
    main()
