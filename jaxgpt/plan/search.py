"""All meshes that divide devices, rows and heads, what an update takes on each, and which is best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxgpt.errors import UsageError
from jaxgpt.mesh import nearest
from jaxgpt.model.config import GPTConfig
from jaxgpt.plan.costs import Sizes, Work, memory, seconds, step_seconds
from jaxgpt.plan.targets import Target


@dataclass(frozen=True)
class Estimate:
    """What an update takes on a mesh.

    Attributes:
        mesh: its axes.
        memory: bytes of a device, by what they are.
        seconds: parts of its time, at best.
        fits: whether the memory is there.
        mfu: arithmetic of the model as a share of the peak.
    """

    mesh: Sizes
    memory: dict[str, float]
    seconds: dict[str, float]
    fits: bool
    mfu: float

    @property
    def bytes(self) -> float:
        """Of a device."""
        return sum(self.memory.values())

    @property
    def step(self) -> float:
        """Seconds of an update."""
        return step_seconds(self.seconds)


def estimate(work: Work, target: Target, mesh: Sizes) -> Estimate:
    """Return what an update takes on a mesh of a target."""
    held, parts = memory(work, mesh), seconds(work, mesh, target)
    mfu = work.flops / (step_seconds(parts) * target.count * target.peak)
    return Estimate(mesh, held, parts, sum(held.values()) <= target.memory, mfu)


def estimates(work: Work, target: Target) -> list[Estimate]:
    """Return those of all meshes, the best first: of those that fit the fastest, and then of the others the smallest.

    Raises:
        UsageError: there is no such mesh.
    """
    found = [estimate(work, target, mesh) for mesh in meshes(work.config, target.count, work.rows)]
    if not found:
        tensors = [tensor for tensor in _tensors(work.config) if target.count % tensor == 0]
        step = target.count // max(tensors)
        near = sorted({max(step, work.rows // step * step), -(-work.rows // step) * step})
        rows = " and ".join(map(str, near))
        raise UsageError(f"batch_size {work.rows} can't be divided among {target.count} devices; nearest are {rows}")
    return sorted(found, key=lambda one: (not one.fits, one.step if one.fits else one.bytes))


def meshes(config: GPTConfig, count: int, rows: int) -> Iterator[Sizes]:
    """Yield all meshes of `count` devices that divide `rows` of a micro-batch, heads and the feed-forward layer."""
    for tensor in _tensors(config):
        own, rest = divmod(count, tensor)
        if not rest and rows % own == 0:
            yield from (Sizes(own // fsdp, fsdp, tensor) for fsdp in range(1, own + 1) if own % fsdp == 0)


def asked_mesh(config: GPTConfig, count: int, rows: int, *, fsdp: int, tensor: int) -> Sizes:
    """Return the mesh that flags ask for.

    Raises:
        UsageError: it divides devices, rows or heads not; the message has the nearest that do.
    """
    tensors = [one for one in _tensors(config) if count % one == 0]
    if tensor not in tensors:
        what = f"{count} devices, n_head {config.n_head} and n_inner {config.inner_dim}"
        raise UsageError(f"tensor {tensor} does not divide {what}; it may be {nearest(tensor, tensors)}")
    own = count // tensor
    if own % fsdp:
        near = nearest(fsdp, [one for one in range(1, own + 1) if own % one == 0])
        raise UsageError(f"fsdp {fsdp} does not divide {count} devices with tensor {tensor}; it may be {near}")
    if rows % own:
        near = " and ".join(map(str, sorted({max(own, rows // own * own), -(-rows // own) * own})))
        raise UsageError(f"batch_size {rows} can't be divided among {own} devices; nearest are {near}")
    return Sizes(own // fsdp, fsdp, tensor)


def _tensors(config: GPTConfig) -> list[int]:
    return [n for n in range(1, config.n_head + 1) if config.n_head % n == 0 and config.inner_dim % n == 0]
