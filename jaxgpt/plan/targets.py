"""Devices that aren't here, by their names: `v5e:4x4`, `h100:8`, `h100:2x8`; what they hold, and how fast they are."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.train.budget import peak_of

GIB = 2**30
NODE = 8
MOST_NODES = 2048
_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")


@dataclass(frozen=True)
class Chip:
    """A kind of device.

    Attributes:
        kind: its name in JAX, by which the table of peaks is read.
        platform: in JAX.
        memory: bytes that programs can have; a TPU's is what its compiler names when a program is too large.
        bandwidth: of its memory, bytes a second.
        link: to a neighbour, in one direction, bytes a second.
        network: of a device to other nodes, bytes a second; 0 where `link` goes everywhere.
        topologies: valid ones of TPUs.
    """

    kind: str
    platform: Literal["tpu", "gpu"]
    memory: float
    bandwidth: float
    link: float
    network: float = 0.0
    topologies: tuple[str, ...] = ()


# Memory's and links' speeds are from the vendors' data sheets: cloud.google.com/tpu/docs/v5e, v5p and v6e, where a
# chip's interconnect is that of 4, 6 and 4 links in both directions; nvidia.com's of A100, H100 and H200.
CHIPS = {
    "v5e": Chip("TPU v5 lite", "tpu", 15.75 * GIB, 819e9, 50e9, topologies=_SQUARES),
    "v5p": Chip("TPU v5", "tpu", 95.74 * GIB, 2765e9, 100e9, topologies=_CUBES),
    "v6e": Chip("TPU v6 lite", "tpu", 31.25 * GIB, 1638e9, 100e9, topologies=_SQUARES),
    "a100": Chip("NVIDIA A100-SXM4-80GB", "gpu", 80e9, 2039e9, 300e9, 25e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", "gpu", 80e9, 3350e9, 450e9, 50e9),
    "h200": Chip("NVIDIA H200", "gpu", 141e9, 4800e9, 450e9, 50e9),
}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
        name: as it is asked for.
        chip: of what kind they are.
        shape: of a TPU's topology; nodes and GPUs of each.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many devices there are."""
        return math.prod(self.shape)

    @property
    def peak(self) -> float:
        """Of a device, in FLOP/s, of bfloat16."""
        return peak_of(self.chip.kind) or math.nan

    @property
    def memory(self) -> float:
        """Bytes of a device that JAX uses: of a GPU's the part that XLA_PYTHON_CLIENT_MEM_FRACTION names, or 3/4."""
        return self.chip.memory * self.fraction

    @property
    def fraction(self) -> float:
        """The part of a device's memory that JAX takes.

        Raises:
            UsageError: XLA_PYTHON_CLIENT_MEM_FRACTION is no such part.
        """
        if self.chip.platform != "gpu":
            return 1.0
        text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
        if not re.fullmatch(r"[01]?\.?\d+", text) or not 0 < float(text) <= 1:
            raise UsageError(f"XLA_PYTHON_CLIENT_MEM_FRACTION is {text!r}; it must be above 0 and at most 1")
        return float(text)

    @property
    def wraps(self) -> bool:
        """Whether a TPU's axes are rings: 16 chips of a square, a multiple of 4 of a cube; 2 are no longer apart."""
        return all(size <= 2 or size % (16 if len(self.shape) == 2 else 4) == 0 for size in self.shape)

    def speed(self, inner: int, size: int) -> float:
        """Return the bytes a second that a device sends round a ring of `size`, whose neighbours are `inner` apart."""
        if self.chip.platform == "tpu":
            return self.chip.link * (2 if self.wraps else 1)
        return self.chip.link if inner * size <= self.shape[-1] else self.chip.network

    def stand_ins(self) -> tuple[Any, ...]:
        """Return what tells a target's devices, but can neither compute nor compile, for `compiling_for`."""
        device = SimpleNamespace(platform=self.chip.platform, device_kind=self.chip.kind)
        return (device,) * self.count


def read_target(name: str) -> Target:
    """Return the target of a name.

    Raises:
        UsageError: there is none; the message has the nearest valid ones.
    """
    kind, _, shape = name.lower().partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        valid = ", ".join(CHIPS)
        near = did_you_mean(kind, CHIPS)
        raise UsageError(f"--plan {name}: no such kind of device; valid are {valid}, as in v5e:4x4 or h100:2x8{near}")
    sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d{1,5}(x\d{1,5}){0,2}", shape) else ()
    if chip.platform == "gpu":
        sizes = (1, *sizes) if len(sizes) == 1 else sizes
        if len(sizes) == 2 and 1 <= sizes[1] <= NODE and 1 <= sizes[0] <= MOST_NODES:
            return Target(name, chip, sizes)
        near = f"{kind}:1 to {kind}:{NODE} are GPUs of a node, {kind}:2x8 is two nodes of 8"
        if len(sizes) == 2 and sizes[0] == 1 and sizes[1] > NODE:
            near = f"a node has at most {NODE}; nearest is {kind}:{min(-(-sizes[1] // NODE), MOST_NODES)}x{NODE}"
        raise UsageError(f"--plan {name}: {shape or 'nothing'} is no number of GPUs; {near}")
    if shape in chip.topologies:
        return Target(name, chip, sizes)
    valid = {math.prod(map(int, one.split("x"))): one for one in chip.topologies}
    wanted = math.prod(sizes)
    below = [one for count, one in valid.items() if sizes and count <= wanted][-1:]
    above = [one for count, one in valid.items() if sizes and count > wanted][:1]
    near = " and ".join(f"{kind}:{one}" for one in below + above or (chip.topologies[0], chip.topologies[-1]))
    raise UsageError(f"--plan {name}: {kind} has no topology {shape or 'without a shape'}; nearest are {near}")
