"""Contestants measured in turns, each in a process of its own, of which only one works at a time.

So neither has the other's threads, allocator or compiler flags beside its own, and a machine that slows down for a
while slows down all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Work = Callable[[], object]


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        name: by which it is asked for, its group first: "train-char".
        what: sizes, for people.
        unit: what a time is given for: "step", "call".
        units: of them in a round.
        contestants: by name, ours first; each makes, in its own process, the function that does one round.
        tokens: in a unit; None where speed is not in tokens.
        rounds: at most, where one takes long; None for as many as are asked for.
        alone: one contestant after the other instead of in turns, where each wants all of a GPU's memory.
        remark: what else the results say, where all contestants could run; a line below the table.
    """

    name: str
    what: str
    unit: str
    units: int
    contestants: Mapping[str, Callable[[], Work]]
    tokens: int | None = None
    rounds: int | None = None
    alone: bool = False
    remark: Callable[[Sequence[Result]], str] | None = None


@dataclass(frozen=True)
class DeviceWork:
    """A round on an accelerator.

    Attributes:
        run: does it.
        peak: returns the bytes of the device's memory that were held at most.
        detail: returns what else there is to say of it.
    """

    run: Work
    peak: Callable[[], int | None]
    detail: Callable[[], str]

    def __call__(self) -> object:
        return self.run()


@dataclass(frozen=True)
class Result:
    """A contestant's times.

    Attributes:
        benchmark: what was measured.
        contestant: whose times these are.
        seconds: for a unit, one figure a round; empty if it failed.
        memory: bytes that its process held at most during its rounds, of the device if it is an accelerator; None where
            the system does not say.
        failure: why it could not run.
        first: seconds until its first round was done, in which it compiles.
        detail: what it says of itself.
    """

    benchmark: Benchmark
    contestant: str
    seconds: tuple[float, ...]
    memory: int | None = None
    failure: str | None = None
    first: float = 0.0
    detail: str = ""

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)


def measure(benchmark: Benchmark, repeats: int) -> list[Result]:
    """Let the contestants do `repeats` rounds each at most, in turns; the first of a turn is the last of the next."""
    together = [[name] for name in benchmark.contestants] if benchmark.alone else [list(benchmark.contestants)]
    return [result for names in together for result in _measure(benchmark, names, repeats)]


def _measure(benchmark: Benchmark, names: Sequence[str], repeats: int) -> list[Result]:
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_process()) for name in names}
        # One after another, because they compile here.
        begun = {name: processes[name].submit(_prepare, benchmark.contestants[name]).result() for name in names}
        turn = [name for name, (failure, _) in begun.items() if failure is None]
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(min(repeats, benchmark.rounds or repeats)):
            for name in turn:
                seconds[name].append(processes[name].submit(_round).result() / benchmark.units)
            turn.reverse()
        ends = {name: process.submit(_end).result() for name, process in processes.items()}
    return [
        Result(benchmark, name, tuple(seconds[name]), memory, *begun[name], detail)
        for name, (memory, detail) in ends.items()
    ]


def apart(function: Callable[..., T], *args: object) -> T:
    """Call a function in a process of its own."""
    with _process() as process:
        return process.submit(function, *args).result()


def last(items: Iterator[T], count: int) -> T:
    """Return the last of the next `count` items, keeping no other."""
    return deque(islice(items, count), maxlen=1).pop()


def run_python(*command: str, **environment: str) -> None:
    """Run a script or module, whose output nobody needs, in a new interpreter."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


_work: Work | None = None


def _prepare(make: Callable[[], Work]) -> tuple[str | None, float]:
    """Build this process's contestant and let it compile; return why it can't, for not every error can be pickled.

    The seconds until then follow.
    """
    global _work
    start = time.perf_counter()
    try:
        _work = make()
        _work()
        _forget_peak()
    except Exception as error:
        _work = None
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", 0.0
    return None, time.perf_counter() - start


def _round() -> float:
    assert _work is not None
    start = time.perf_counter()
    _work()
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Begin the count of the process's peak memory anew: what compiling took counts only where it is kept."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _end() -> tuple[int | None, str]:
    """Return the memory that this process held at most, and what its contestant says of itself."""
    return (_work.peak(), _work.detail()) if isinstance(_work, DeviceWork) else (_peak(), "")


def _peak() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None
