"""All meshes that divide devices, rows and heads, what an update takes on each, and which is best."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxgpt.errors import UsageError
from jaxgpt.mesh import Sizes, check_heads, check_rows, divide
from jaxgpt.model.config import GPTConfig
from jaxgpt.plan.costs import Work, memory, seconds, step_seconds
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


def estimates(work: Work, target: Target, *, fsdp: int | None = None, tensor: int | None = None) -> list[Estimate]:
    """Return those of all meshes, the best first: of those that fit the fastest, and then of the others the smallest.

    Args:
        work, target: what runs where.
        fsdp, tensor: what is asked for; None for any.

    Raises:
        UsageError: there is no such mesh; the message has the nearest of what divides devices, heads and rows.
    """
    found = [
        estimate(work, target, mesh)
        for mesh in meshes(work.config, target.count, work.rows)
        if fsdp in (None, mesh.fsdp) and tensor in (None, mesh.tensor)
    ]
    if not found:
        # The more devices share each layer, the fewer need rows of their own.
        left, over = divmod(target.count, fsdp or 1)
        most = 1 if over else math.gcd(left, work.config.n_head, work.config.inner_dim)
        _checked(work.config, target.count, work.rows, fsdp or 1, tensor or most)
    return sorted(found, key=lambda one: (not one.fits, one.step if one.fits else one.bytes))


def meshes(config: GPTConfig, count: int, rows: int) -> Iterator[Sizes]:
    """Yield all meshes of `count` devices that divide `rows` of a micro-batch, heads and the feed-forward layer."""
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for tensor, fsdp in itertools.product(sizes, sizes):
        with contextlib.suppress(UsageError):
            yield _checked(config, count, rows, fsdp, tensor)


def _checked(config: GPTConfig, count: int, rows: int, fsdp: int, tensor: int) -> Sizes:
    sizes = divide(count, fsdp=fsdp, tensor=tensor)
    check_heads(sizes, config)
    check_rows(sizes, rows)
    return sizes
