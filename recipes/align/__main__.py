"""`python -m recipes.align`: data, every stage, the figures, the page; called again, it goes on where it stopped."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.cli import entry
from jaxgpt.command_line import command, parse
from jaxgpt.errors import RunError
from jaxgpt.flags import PathName, flag
from recipes.align.commands import Stage, stages
from recipes.align.data import PARTS, write_data

PROGRAM = "python -m recipes.align"


@dataclass(frozen=True)
class Options:
    """What the recipe is asked."""

    out_dir: PathName = flag("out-align", "folder of the data, the runs and the page; another one to begin anew")
    page: PathName | None = flag(None, "folder for the page and its pictures; none: out_dir")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; exit with 1 if a stage fails or a bar is not cleared."""
    options = parse(Options, argv, prog=PROGRAM, description="Pretrain, SFT, reward, DPO, PPO.")
    folder = Path(options.out_dir)
    clock = Clock(folder / "seconds.json")
    data = folder / "data"
    show(data, write_data(data))
    runs = {stage.name: stage for stage in stages(folder)}
    for stage in runs.values():
        run(stage, folder, clock)
        if stage.name == "sft":
            compare_answers(folder / stage.name, data, clock)

    print("\n== evaluation: answers to prompts that no stage has seen", flush=True)
    from recipes.align.page import write_page  # with JAX and matplotlib, which data and a running stage do without
    from recipes.align.results import bars, measure

    with clock.measures("evaluation", anew=True):
        results = measure(folder, runs)
    called = shlex.join([*PROGRAM.split(), *(sys.argv[1:] if argv is None else argv)])
    page = write_page(Path(options.page or folder), folder, results, list(runs.values()), clock.seconds, called)
    print()
    for bar in (found := bars(results)):
        print(f"{'pass' if bar.passed else 'FAIL'}  {bar.what}: {bar.measured} ({bar.asked})")
    print(f"\npage: {page}, after {sum(clock.seconds.values()) / 60:.1f} minutes")
    sys.exit(0 if all(bar.passed for bar in found) else 1)


class Clock:
    """How long each part has taken, over all calls of the recipe on a folder."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def measures(self, name: str, *, anew: bool = False) -> Iterator[None]:
        """Add the time of what is done inside, or put it in the place of what was there."""
        before, begin = 0.0 if anew else self.seconds.get(name, 0.0), time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - begin
            self._file.write_text(json.dumps(self.seconds))


def run(stage: Stage, folder: Path, clock: Clock) -> None:
    """Run a stage in a process of its own, as a user would.

    Raises:
        RunError: it failed, and has said why.
    """
    print(f"\n== {stage.name}: {stage.about}", flush=True)
    if stage.done(folder):
        print(f"done before, in {clock.seconds.get(stage.name, 0):.0f} s")
        return
    print(stage, flush=True)
    with clock.measures(stage.name), interrupts_left_to_the_stage():
        code = subprocess.run([sys.executable, "train.py", *stage.words]).returncode
    if code:
        raise RunError(f"{stage.name} ended with {code}; the same command goes on from here")
    if not stage.done(folder):
        raise RunError(f"{stage.name} was stopped; the same command goes on from here")
    print(f"== {stage.name}: {clock.seconds[stage.name]:.0f} s", flush=True)


@contextmanager
def interrupts_left_to_the_stage() -> Iterator[None]:
    """Let Ctrl-C, which the stage gets too, end the stage alone: it saves, where it would be killed before it has."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # SIG_IGN would be inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def compare_answers(sft: Path, data: Path, clock: Clock) -> None:
    """Write the pairs of answers, once: all stages behind them are of these."""
    if all((data / f"pairs-{part}.jsonl").exists() for part in PARTS):
        return
    print("\n== pairs: the model's answers, by the rule", flush=True)
    from recipes.align.make_pairs import write_pairs

    with clock.measures("pairs"):
        show(data, write_pairs(sft, data))


def show(data: Path, counts: Mapping[str, int]) -> None:
    """Say how many records there are in each file."""
    for file, count in counts.items():
        print(f"{data / file}.jsonl: {count:,}")


if __name__ == "__main__":
    entry.run("recipes.align.__main__")
