"""The report that `train.py --plan TARGET` prints: a plan as computed and, where a compiler is there, as compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxgpt.devices import compute_dtype
from jaxgpt.errors import RunError
from jaxgpt.model.atlas import count
from jaxgpt.model.attention_kernels import report as attention_report
from jaxgpt.model.attention_kernels import why_not
from jaxgpt.model.config import GPTConfig
from jaxgpt.plan.compiled import Compiled, compile_for, planning_for, why_no_compiler
from jaxgpt.plan.costs import Work, sent
from jaxgpt.plan.search import Estimate, estimates
from jaxgpt.plan.targets import GIB, Target
from jaxgpt.train.config import RunConfig

TOKENS_A_PARAMETER = 20
"""At which a model's loss is least for its arithmetic (Hoffmann et al. 2022)."""
MESHES_SHOWN = 5
_TITLES = {
    "products": "matrix products",
    "memory": "element-wise passes",
    "optimizer": "optimizer",
    "sent in the way": "sent in the way (tensor)",
    "sent beside": "sent beside (data, fsdp)",
}


def work_of(flags: RunConfig, config: GPTConfig, target: Target, length: int) -> Work:
    """Return the step that flags ask for, as it would run on a target."""
    with planning_for(target, target.stand_ins()):
        dtype = compute_dtype(flags.dtype)
        name = "cuda" if target.chip.platform == "gpu" else target.chip.platform
        kernel = config.attn_pdrop == 0 and not why_not(name, length, config.head_dim, dtype, packed=False)
    width = 4 if dtype == "float32" else 2
    micro, accumulate = flags.batch_size, flags.gradient_accumulation_steps
    return Work(config, micro, length, accumulate, width, flags.remat, kernel, target.chip.platform)


def describe_plan(
    flags: RunConfig,
    config: GPTConfig,
    target: Target,
    *,
    length: int,
    price: float | None,
    make_trainer: Callable[[Any], Any],
) -> Iterator[str]:
    """Yield the lines of a plan, the last ones after compiling.

    Args:
        flags: the run's. Of the mesh, what they leave open is as is best.
        config: the model's.
        target: where it is to run.
        length: T.
        price: of all devices for an hour.
        make_trainer: of a mesh.

    Raises:
        UsageError: no mesh divides devices, rows and heads, or the one that is asked for doesn't.
    """
    work = work_of(flags, config, target, length)
    found = estimates(work, target, fsdp=flags.fsdp, tensor=flags.tensor)
    best, asked = found[0], flags.fsdp is not None and flags.tensor is not None
    yield from _about(flags, work, target)
    yield ""
    yield f"{'mesh':<32}{'GiB a device':>14}{'fits':>6}{'s a step':>10}{'MFU':>7}"
    for one in found[:MESHES_SHOWN]:
        fits = "yes" if one.fits else "no"
        yield f"{one.mesh!s:<32}{one.bytes / GIB:>14.2f}{fits:>6}{one.step:>10.3g}{one.mfu:>7.0%}"
    if len(found) > MESHES_SHOWN:
        yield f"and {len(found) - MESHES_SHOWN} more meshes"
    yield ""
    yield from _of_mesh(work, target, best, asked=asked)
    yield ""
    yield from _of_run(flags, work, best, price)
    yield ""
    yield from _compiled(target, best, work, make_trainer)


def _about(flags: RunConfig, work: Work, target: Target) -> Iterator[str]:
    config, chip = work.config, target.chip
    with planning_for(target, target.stand_ins()):
        dtype = compute_dtype(flags.dtype)
        attention = attention_report(config, dtype, work.length, packed=False)
    yield f"target:    {target.count} x {chip.kind} ({target.name}), {target.memory / GIB:.2f} GiB each for JAX"
    if chip.platform == "gpu":
        part = f"{target.fraction:g}, as XLA_PYTHON_CLIENT_MEM_FRACTION says"
        yield f"           of {chip.memory / GIB:.2f}: {part}"
    total = count(config)["total"]
    yield f"model:     {total:,} parameters, {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}"
    rows = f"{work.rows} rows of {work.length} in {work.accumulate} micro-batch{'es' * (work.accumulate > 1)}"
    yield f"update:    {work.tokens:,} tokens, {rows}, {dtype}{', remat' if work.remat else ''}"
    yield f"attention: {attention}"
    yield f"FLOPs:     {work.flops / 1e12:,.1f} T an update, what remat repeats not counted"
    to_nodes = f", {chip.network / 1e9:g} GB/s to other nodes" if chip.network else ""
    links = (
        f"links of {chip.link / 1e9:g} GB/s in one direction{', rings' if target.wraps and not chip.network else ''}"
    )
    speeds = f"{target.peak / 1e12:g} TFLOP/s in bf16, memory {chip.bandwidth / 1e9:g} GB/s, {links}{to_nodes}"
    yield f"assumed:   {speeds};"
    yield "           all at their peak; gradients and weights are sent beside the arithmetic, tensor's sums in the way"


def _of_mesh(work: Work, target: Target, best: Estimate, *, asked: bool) -> Iterator[str]:
    head = "as asked" if asked else "best"
    yield f"{head}: {best.mesh}" + ("" if best.fits else ", which does not fit: smaller --batch_size, or --remat")
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in best.memory.items())
    yield f"  memory a device   {best.bytes / GIB:.2f} of {target.memory / GIB:.2f} GiB: {parts}"
    yield f"  sent a device     {_sent(sent(work, best.mesh))}, at least"
    times = ", ".join(f"{_TITLES[name]} {1e3 * time:.3g}" for name, time in best.seconds.items() if time)
    yield f"  step              {1e3 * best.step:.4g} ms: {times}"
    yield f"  throughput        {work.tokens / best.step:,.0f} tokens/s, MFU {best.mfu:.0%} at best"


def _of_run(flags: RunConfig, work: Work, best: Estimate, price: float | None) -> Iterator[str]:
    optimum = TOKENS_A_PARAMETER * count(work.config)["total"]
    runs = {f"max_iters {flags.max_iters:,}": flags.max_iters * work.tokens, "Chinchilla's optimum": optimum}
    for name, tokens in runs.items():
        hours = tokens / work.tokens * best.step / 3600
        cost = "" if price is None else f", costing {price * hours:,.2f}"
        yield f"{name:<22}{tokens:,} tokens: {hours:,.2f} hours at best{cost}"


def _compiled(target: Target, best: Estimate, work: Work, make_trainer: Callable[[Any], Any]) -> Iterator[str]:
    if missing := why_no_compiler(target):
        yield f"compiled: no, figures are computed from shapes alone; {missing}"
        return
    yield f"compiling the step for {target.name}: minutes, for large models many; Ctrl-C leaves the plan above …"
    mesh = best.mesh
    try:
        rows = work.rows * work.accumulate
        made = compile_for(target, make_trainer, fsdp=mesh.fsdp, tensor=mesh.tensor, rows=rows, length=work.length)
    except RunError as error:
        yield f"compiled: no; {error}"
        return
    yield from _of_compiled(target, best, made)


def _of_compiled(target: Target, best: Estimate, made: Compiled) -> Iterator[str]:
    peak = made.state + made.temporary
    fits = "fits" if peak <= target.memory else "does NOT fit"
    yield f"compiled: in {made.seconds:.0f} s, on {best.mesh}"
    sizes = f"state and batch {made.state / GIB:.2f}, temporary {made.temporary / GIB:.2f}"
    computed = f"{best.bytes / GIB:.2f} as computed"
    yield f"  memory a device   {peak / GIB:.2f} of {target.memory / GIB:.2f} GiB, {fits}: {sizes}; {computed}"
    yield f"  sent a device     {_sent(made.sent)}"


def _sent(collectives: Sequence[Any]) -> str:
    if not collectives:
        return "nothing"
    kinds: dict[str, float] = {}
    for one in collectives:
        kinds[one.kind] = kinds.get(one.kind, 0.0) + one.bytes
    most = sorted(kinds, key=lambda kind: -kinds[kind])
    each = ", ".join(f"{kind} {kinds[kind] / 2**20:,.0f}" for kind in most)
    return f"{sum(kinds.values()) / 2**20:,.0f} MiB a step: {each}"
