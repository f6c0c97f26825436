"""`python -m benchmarks.collectives`: what devices send each other in a training step, read from its compiled program.

The step is the one that `train.py` runs. It is compiled for eight devices of this host, or, where libtpu is installed,
for a TPU that isn't here (`--target v5e:2x4`). Bytes are those that a device sends in a step where each collective goes
round a ring, and beside them stands what a mesh has to send at least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

MESHES = {
    "data 8": {},
    "fsdp 8": {"fsdp": 8},
    "data 4, tensor 2": {"tensor": 2},
    "data 2, fsdp 2, tensor 2": {"fsdp": 2, "tensor": 2},
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64}
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One collective of a compiled program.

    Attributes:
        kind: one of KINDS.
        arrays: dtype and shape of each result.
        group: devices that take part together.
        times: how often it runs in a step.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    times: int

    @property
    def bytes(self) -> float:
        """What a device sends in a step, round a ring."""
        size, n = sum(math.prod(shape) * _BITS[dtype] // 8 for dtype, shape in self.arrays), self.group
        factor = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
        return self.times * size * factor.get(self.kind, (n - 1) / n)

    def __str__(self) -> str:
        arrays = " ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in self.arrays)
        return f"{self.kind} of {self.group}: {arrays}"


def collectives(text: str) -> list[Collective]:
    """Return a compiled program's collectives, those in loops with how often they run."""
    bodies = dict(_computations(text))
    times: Counter[str] = Counter({name: 1 for name in bodies if f"ENTRY %{name}" in text})
    for name in reversed(bodies):  # callers come behind what they call
        for line in bodies[name]:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"%([\w.-]+)", re.sub(r"^.*? = ", "", line)):
                if called in bodies:
                    times[called] += times[name] * (int(trips[1]) if trips and f"body=%{called}" in line else 1)
    chains: set[tuple[str, str]] = set()
    found = []
    for name, lines in bodies.items():
        for line in lines:
            one = _read(name, line, times[name])
            if one is None or not one.times or one.group == 1:
                continue
            # What a TPU sends while it computes stands in the program several times, as one chain.
            chain = re.search(r'chain_id="(\d+)"', line)
            if chain is None or (one.kind, chain[1]) not in chains:
                found.append(one)
            if chain is not None:
                chains.add((one.kind, chain[1]))
    return found


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each computation's name and lines."""
    for block in re.findall(r"^(?:ENTRY )?%[\w.-]+ \(.*?^\}", text, re.DOTALL | re.MULTILINE):
        head, *lines = block.splitlines()
        yield re.sub(r"^(?:ENTRY )?%([\w.-]+).*", r"\1", head), lines


def _read(computation: str, line: str, times: int) -> Collective | None:
    call = _CALL.search(line)
    if call is None:
        return None
    kind = call[2]
    arrays = [(dtype, tuple(map(int, filter(None, shape.split(","))))) for dtype, shape in _ARRAY.findall(call[1])]
    arrays = [one for one in arrays if one[0] in _BITS]
    if call[3] and kind != "all-reduce":  # a pair of operands and results, and for some numbers of their state
        arrays = [one for one in arrays if one[1]]
        arrays = arrays[len(arrays) // 2 :]
    group = _group(line)
    if computation.startswith("all-reduce-scatter"):  # how a TPU writes it
        kind, arrays = "reduce-scatter", [(dtype, (math.prod(shape) // group,)) for dtype, shape in arrays]
    return Collective(kind, tuple(arrays), group, times)


def _group(line: str) -> int:
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        # A part of an axis is written with its own size: 'a':(2)4.
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]))
    return 2 if "source_target_pairs" in line else 1


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
        target: a TPU's topology, as "v5e:2x4"; None for this process's devices.
        config: the model's.
        rows: of a batch, over all devices and micro-batches.
        length: T.
        dtype, remat, accumulate: see `RunConfig`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from jaxgpt.data.batches import Batch
    from jaxgpt.mesh import batch_sharding, make_mesh
    from jaxgpt.model.atlas import parameters
    from jaxgpt.model.gpt import GPT
    from jaxgpt.objectives.next_tokens import pretrain
    from jaxgpt.stages.pretrain import PretrainConfig
    from jaxgpt.train.trainer import Trainer

    devices = None if target is None else topologies.get_topology_desc(target, "tpu").devices
    flags = PretrainConfig(batch_size=rows // accumulate, gradient_accumulation_steps=accumulate, dtype=dtype)
    where = make_mesh(**mesh, devices=devices)
    model = GPT(config, jnp.dtype(dtype), remat)
    trainer = Trainer(flags, where, config=config, objective=pretrain(model), parameters=tuple(parameters(config)))
    ids, place = np.zeros((rows, length), np.int32), batch_sharding(where)
    batch = Batch(ids, ids, np.ones(ids.shape, np.float32))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batch)
    return trainer.step.jitted.lower(trainer.abstract, batch).compile()


def ideal(config: Any, *, data: int, fsdp: int, tensor: int, rows: int, length: int, width: int, remat: bool) -> float:
    """Return the bytes that a device has to send in a step at least.

    Gradients are summed over data in f32; with fsdp weights are gathered in the compute dtype, once more for the
    backward pass in the blocks, and gradients scattered in f32; with tensor each layer sums activations twice on the
    way there and twice on the way back, and remat repeats attention's.

    Args:
        config: the model's.
        data, fsdp, tensor: the mesh's sizes.
        rows: of a micro-batch, of which there is one.
        length: T.
        width: of the compute dtype, in bytes.
        remat: see `RunConfig`.
    """
    from jax.sharding import AbstractMesh

    from jaxgpt.mesh import parameter_spec
    from jaxgpt.model.atlas import parameters

    mesh, total = AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor")), 0.0
    for parameter in parameters(config):
        axes = parameter_spec(mesh, parameter)
        size = math.prod(parameter.shape) / (tensor if "tensor" in axes else 1)
        if "fsdp" in axes:
            gathers = 2 if "{i}" in parameter.row.path else 1
            total += (gathers * width + 4) * size * (fsdp - 1) / fsdp + 8 * size / fsdp * (data - 1) / data
        else:
            total += 8 * size * (data * fsdp - 1) / (data * fsdp)
    sums = config.n_layer * (4 + remat) * 2 * (tensor - 1) / tensor
    return total + sums * rows // (data * fsdp) * length * config.n_embd * width


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each mesh, or one mesh's collectives as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__)
    parser.add_argument("meshes", nargs="*", metavar="MESH", help=f"{'; '.join(MESHES)} (default: all)")
    parser.add_argument("--target", help="a TPU's topology, as v5e:2x4 (default: eight devices of this host)")
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
    least = ideal(
        config, data=8 // math.prod(axes.values()), **axes, rows=options.rows // accumulate, length=options.length,
        width=2 if options.dtype == "bfloat16" else 4, remat=remat,
    )  # fmt: skip
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
