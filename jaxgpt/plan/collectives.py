"""What devices send each other, read from a compiled program: each collective, with how often it runs in a step.

Bytes are those that a device sends where a collective goes round a ring.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

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
