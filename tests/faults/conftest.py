"""Real processes that train a tiny model, and what of a run must be equal after whatever happened to it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import ENVIRONMENT, ROOT, differences, read_rows
from tests.processes import end

TEXT = ROOT / "jaxgpt" / "data" / "plays" / "hamlet.txt"
# With dropout, accumulation, evaluation between checkpoints, and the best one kept.
TINY = (
    "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --gradient_accumulation_steps=2 --dropout=0.1 "
    "--warmup_iters=2 --max_iters=20 --eval_iters=2 --eval_interval=4 --save_interval=5 --log_interval=1 "
    "--sample_tokens=0 --tensorboard=false"
).split()
# Runs before train.py's main: sends this process a signal just before it gives step N to the caller.
AT_STEP = """
import os, signal
from jaxgpt import train
run = train.run
def watched(*args, **kwargs):
    for done, state, metrics in run(*args, **kwargs):
        for number in {signals} if done == {step} else ():
            os.kill(os.getpid(), number)
        yield done, state, metrics
train.run = watched
"""


class Workshop:
    """A folder with a text, in which runs are begun, stopped and compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")

    def argv(self, out: str | Path, *flags: str) -> list[str]:
        """Return train.py's arguments for a tiny run in the folder `out`; of equal flags the last one counts."""
        places = [f"--out_dir={self.folder / out}", f"--dataset={self.folder / 'text.txt'}"]
        words = [*places, f"--cache_dir={self.folder / 'cache'}", *TINY, *flags]
        return list({word.partition("=")[0]: word for word in words}.values())

    def start(self, out: str | Path, *flags: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """Begin a process of train.py, or one that runs the code `before` and then train.py's main; `end` ends it."""
        code = ["-c", f"{before}\nfrom jaxgpt.cli.entry import train; train()"] if before else [str(ROOT / "train.py")]
        argv, env = [sys.executable, *code, *self.argv(out, *flags)], {**os.environ, **ENVIRONMENT, **environment}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, cwd=ROOT, env=env, start_new_session=True, **pipes)

    def train(self, out: str | Path, *flags: str, before: str = "", **environment: str) -> tuple[int, str, str]:
        """Run such a process to its end; return its exit code, output and errors.

        It keeps what it compiles for others, as one that may be killed must not.
        """
        kept = {} if before else {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        with self.start(out, *flags, before=before, **kept, **environment) as process:
            try:
                output, errors = process.communicate(timeout=120)
            finally:
                end(process)
        return process.returncode, output, errors

    def rows(self, out: str | Path) -> list[dict[str, Any]]:
        """Return the rows of metrics without what depends on the clock."""
        return read_rows(self.folder / out)

    def steps(self, out: str | Path) -> list[int]:
        """Return the steps of the checkpoints."""
        return sorted(int(path.parent.name) for path in (self.folder / out).glob("checkpoints/*/manifest.json"))

    def assert_equal(self, out: str | Path, other: str | Path, step: int = 20) -> None:
        """Compare two runs bit for bit: parameters, optimizer state, counters, and rows of metrics."""
        assert differences(self.folder / out, self.folder / other, step) == []


@pytest.fixture(scope="session")
def at_step() -> Callable[..., str]:
    """A function (step, *signals) → code for `before`: the process gets the signals in that step."""
    return lambda step, *signals: AT_STEP.format(step=step, signals=[int(number) for number in signals])


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    yield Workshop(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def whole(workshop: Workshop) -> str:
    """A run of 20 steps that nothing disturbed."""
    code, output, errors = workshop.train("whole", "--init_from=auto")
    assert code == 0, errors
    assert "holds no checkpoint yet; starting from scratch" in output
    return "whole"
