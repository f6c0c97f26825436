"""`python -m benchmarks.soak`: a run that is killed and resumed again and again must end as if nothing had happened.

A tiny model is trained once undisturbed, and once while its process is ended at random moments, by SIGKILL, by SIGTERM,
or by two signals at once. Parameters, optimizer state and rows of metrics must then be equal, bit for bit. Then a
process makes 5,000 steps, over which its memory and its open files must not grow.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FLAGS = (
    "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --gradient_accumulation_steps=2 --dropout=0.1 "
    "--warmup_iters=2 --eval_iters=2 --log_interval=1 --sample_tokens=0 --tensorboard=false"
).split()
STEPS_PER_KILL = 20
# Compiles in a fifth of the time; all processes are compiled alike.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jax").startswith("0.10."):  # newer ones have no other emitters, and refuse the flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"
ENVIRONMENT = {"XLA_FLAGS": QUICK}


def main(argv: Sequence[str] | None = None) -> None:
    """Run both parts and print a line on each; exit with 1 if the runs differ or a process grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="times that the process is ended (default: 50)")
    parser.add_argument("--steps", type=int, default=5000, help="over which memory is watched; 0 for not at all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        fine = soak(Path(folder), options.kills, random.Random(options.seed))
        fine = (options.steps == 0 or watch(Path(folder), options.steps)) and fine
    sys.exit(0 if fine else 1)


def soak(folder: Path, kills: int, chance: random.Random) -> bool:
    """Compare a run that is ended `kills` times with one that is not; return whether they are equal."""
    begin, total = time.perf_counter(), kills * STEPS_PER_KILL
    flags = [f"--max_iters={total}", "--eval_interval=30", "--save_interval=7"]
    finish(start(folder / "whole", *flags))
    ends: Counter[str] = Counter()
    for kill in range(kills):
        # By then at the latest; a fifth of them before the first step, while it imports, restores or compiles.
        last = chance.randint(kill * STEPS_PER_KILL, (kill + 1) * STEPS_PER_KILL - 1)
        process = start(folder / "killed", *flags)
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0, 3))
        else:
            wait_for(process, last)
            time.sleep(chance.uniform(0, 0.1))
        signals = chance.choice([[signal.SIGKILL], [signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM]])
        for number in signals:
            process.send_signal(number)
        process.communicate()
        ends[{0: "stopped and saved"}.get(process.returncode, "ended at once")] += 1
    finish(start(folder / "killed", *flags))
    different = differences(folder / "killed", folder / "whole", total)
    minutes = (time.perf_counter() - begin) / 60
    how = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(
        f"soak: {kills} kills in {total} steps and {minutes:.1f} min ({how}): "
        + (f"different: {', '.join(different[:5])}" if different else "equal bit for bit"),
        flush=True,
    )
    return not different


def watch(folder: Path, steps: int) -> bool:
    """Return whether the memory and the open files of a process stay what they were after a fifth of its steps."""
    process = start(folder / "watched", f"--max_iters={steps + 1}", "--eval_interval=100", "--save_interval=50")
    measured = []
    for part in range(1, 6):
        wait_for(process, part * steps // 5)
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        memory = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
        measured.append((memory, len(os.listdir(f"/proc/{process.pid}/fd"))))
    process.kill()
    process.communicate()
    (first, opened), (last, open_now) = measured[0], measured[-1]
    # A checkpoint may be under way at either moment.
    fine = last < 1.05 * first and open_now <= opened + 8
    print(
        f"soak: from step {steps // 5} to {steps} memory went from {first:.0f} to {last:.0f} MiB and open files from "
        f"{opened} to {open_now}: {'flat' if fine else 'they grow'}",
        flush=True,
    )
    return fine


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    """Begin a process that begins the run in `out` or goes on with it."""
    text = ROOT / "jaxgpt" / "data" / "plays" / "hamlet.txt"
    places = [f"--out_dir={out}", f"--dataset={text}", f"--cache_dir={out.parent / 'cache'}"]
    argv = [sys.executable, str(ROOT / "train.py"), *places, *FLAGS, *flags, "--init_from=auto"]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT}
    )


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    """Read what a process says until it has reached a step or ended."""
    assert process.stdout is not None
    for line in process.stdout:
        words = line.split()
        if line.startswith("step ") and int(words[1].partition("/")[0].rstrip(":")) >= step:
            return


def finish(process: subprocess.Popen[str]) -> None:
    """Let a process come to its end, which must be a good one."""
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"train.py exited with {process.returncode}:\n{output}")


def differences(one: Path, other: Path, step: int) -> list[str]:
    """Return what of two runs is not equal bit for bit: rows of metrics, and arrays of the checkpoint of a step."""
    rows = [pair for pair in zip(read_rows(one), read_rows(other), strict=False) if pair[0] != pair[1]]
    found = [f"the row of {row['split']} at step {row['step']}" for row, _ in rows]
    if len(read_rows(one)) != len(read_rows(other)):
        found.append("the number of rows")
    states = read_state(one, step), read_state(other, step)
    return found + [
        name for name in sorted(states[0].keys() | states[1].keys()) if states[0].get(name) != states[1].get(name)
    ]


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Return a run's rows of metrics without what depends on the clock."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in row.items() if key not in ("tokens_per_s", "mfu")} for row in rows]


def read_state(run: Path, step: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the dtype, shape and bytes of every array of a checkpoint by its path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = (run / "checkpoints" / str(step)).resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, warnings.catch_warnings(action="ignore"):
        trees = {item: reader.restore(folder / item) for item in ("params", "rest")}
    leaves = [
        (jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    ]
    return {name: (str(leaf.dtype), leaf.shape, leaf.tobytes()) for name, leaf in leaves}


if __name__ == "__main__":
    main()
