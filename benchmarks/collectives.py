"""`python -m benchmarks.collectives`: what devices send each other in a training step, read from its compiled program.

The step is the one that `train.py` runs. It is compiled for eight devices of this host, or, where the compiler is
installed, for devices that aren't here (`--target v5e:2x4`). Bytes are those that a device sends in a step where each
collective goes round a ring, and beside them stands what a mesh has to send at least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

MESHES = {
    "data 8": {},
    "fsdp 8": {"fsdp": 8},
    "data 4, tensor 2": {"tensor": 2},
    "data 2, fsdp 2, tensor 2": {"fsdp": 2, "tensor": 2},
}


def compile_step(
    *,
    mesh: dict[str, int],
    target: str | None = None,
    config: Any,
    rows: int,
    length: int,
    dtype: Any = "bfloat16",
    remat: bool = True,
    accumulate: int = 1,
) -> Any:
    """Return the compiled training step of a new model.

    Args:
        mesh: `make_mesh`'s axes.
        target: as "v5e:2x4" or "h100:8", see `jaxgpt.plan.targets`; None for this process's devices.
        config: the model's.
        rows: of a batch, over all devices and micro-batches.
        length: T.
        dtype, remat, accumulate: see `RunConfig`.
    """
    import jax.numpy as jnp

    from jaxgpt.model.atlas import parameters
    from jaxgpt.model.gpt import GPT
    from jaxgpt.objectives.next_tokens import pretrain
    from jaxgpt.plan import compiled
    from jaxgpt.plan.targets import read_target
    from jaxgpt.stages.pretrain import PretrainConfig
    from jaxgpt.train.trainer import Trainer

    flags = PretrainConfig(batch_size=rows // accumulate, gradient_accumulation_steps=accumulate, dtype=dtype)
    model = GPT(config, jnp.dtype(dtype), remat)

    def make_trainer(where: Any) -> Trainer:
        return Trainer(flags, where, config=config, objective=pretrain(model), parameters=tuple(parameters(config)))

    step: dict[str, Any] = {"fsdp": 1, "tensor": 1, **mesh, "rows": rows, "length": length}
    if target is None:
        return compiled.compile_step(make_trainer, **step)
    there = read_target(target)
    with compiled.planning_for(there, compiled.target_topology(there)):
        return compiled.compile_step(make_trainer, **step)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each mesh, or one mesh's collectives as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__)
    parser.add_argument("meshes", nargs="*", metavar="MESH", help=f"{'; '.join(MESHES)} (default: all)")
    parser.add_argument("--target", help="v5e:2x4 or h100:8 (default: eight devices of this host)")
    parser.add_argument("--model", default="gpt2", help="gpt2 (default), gpt2-medium …; or tiny")
    parser.add_argument("--rows", type=int, default=64, help="of a batch (default: 64)")
    parser.add_argument("--length", type=int, default=1024, help="tokens in a row (default: 1024)")
    parser.add_argument("--dtype", default="bfloat16", help="of activations (default: bfloat16)")
    parser.add_argument("--no-remat", action="store_true", help="keep activations for the backward pass")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches (default: 1)")
    parser.add_argument("--each", action="store_true", help="list every collective")
    parser.add_argument("--json", action="store_true", help="print what tests read")
    options = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"
    for name in options.meshes or MESHES:
        measured = measure(name, options)
        print(json.dumps(measured) if options.json else described(name, measured, options.each), flush=True)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compile the step on one of MESHES and return its collectives, its memory, and the least that it has to send."""
    from jaxgpt.model.config import GPTConfig
    from jaxgpt.plan.collectives import collectives
    from jaxgpt.plan.costs import Sizes, Work, sent

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    if options.model == "tiny":
        config = GPTConfig(512, options.length, n_embd=64, n_layer=2, n_head=4, **rates)
    else:
        config = replace(GPTConfig.preset(options.model), **rates)
    axes = {"fsdp": 1, "tensor": 1, **MESHES[name]}
    remat, accumulate = not options.no_remat, options.accumulate
    compiled = compile_step(
        mesh=axes, target=options.target, config=config, rows=options.rows, length=options.length,
        dtype=options.dtype, remat=remat, accumulate=accumulate,
    )  # fmt: skip
    found, memory = collectives(compiled.as_text()), compiled.memory_analysis()
    width = 2 if options.dtype == "bfloat16" else 4
    work = Work(config, options.rows // accumulate, options.length, accumulate, width, remat)
    least = sum(one.bytes for one in sent(work, Sizes(8 // math.prod(axes.values()), **axes)))
    return {
        "mesh": name,
        "collectives": [{"what": str(one), "bytes": one.bytes, "times": one.times, **vars(one)} for one in found],
        "bytes": sum(one.bytes for one in found),
        "ideal": least,
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def described(name: str, measured: dict[str, Any], each: bool) -> str:
    """Return a table's row, and with `each` one for every collective."""
    by_kind: Counter[str] = Counter()
    for one in measured["collectives"]:
        by_kind[one["kind"]] += one["bytes"]
    mib = 2**20
    kinds = ", ".join(f"{kind} {size / mib:,.1f}" for kind, size in by_kind.most_common())
    line = f"| {name} | {measured['bytes'] / mib:,.1f} | {measured['ideal'] / mib:,.1f} | {kinds} "
    line += f"| {measured['state'] / mib:,.0f} | {measured['temporary'] / mib:,.0f} |"
    if not each:
        return line
    same: Counter[str] = Counter()
    for one in measured["collectives"]:
        same[f"{one['times']} x {one['what']}"] += one["bytes"]
    return "\n".join([line, *(f"  {size / mib:10,.2f} MiB  {what}" for what, size in same.most_common(40))])


if __name__ == "__main__":
    main()
