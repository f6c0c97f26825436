"""What a first user waits for: from the command to the first update, and to the first token, taken apart."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.report import grid
from benchmarks.timing import run_python

NAME = "startup-waits"
ROUNDS = 3  # at most
_BEGUN = "JAXGPT_BENCHMARK_BEGUN"


def compare(repeats: int) -> tuple[str, bool]:
    """Return tables of what is waited for; each round is a process of its own, with an empty cache."""
    with TemporaryDirectory() as folder:
        run_python("-c", "import sys; from pathlib import Path; from benchmarks.decode import save; "
                   "save(Path(sys.argv[1]))", f"{folder}/model")  # fmt: skip
        run_python("convert_weights.py", f"{folder}/model", f"{folder}/run")
        parts = [_table(name, what, folder, min(repeats, ROUNDS)) for name, (what, _) in WAITS.items()]
    return "\n".join(parts), True


def _table(name: str, what: str, folder: str, rounds: int) -> str:
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        out = Path(folder, f"{name}-{number}.json")
        begun = {_BEGUN: str(time.time()), "XDG_CACHE_HOME": f"{folder}/cache-{name}-{number}"}
        run_python("-m", "benchmarks.waits", name, folder, str(out), **begun)
        for phase, wall, cpu in json.loads(out.read_text()):
            found.setdefault(phase, []).append((wall, cpu))
    rows = {phase: [median(kind) for kind in zip(*seconds, strict=True)] for phase, seconds in found.items()}
    rows["together"] = [sum(kind) for kind in zip(*rows.values(), strict=True)]
    lines = [["", "s", "s of CPU"], *([phase, f"{wall:.2f}", f"{cpu:.2f}"] for phase, (wall, cpu) in rows.items())]
    return f"**{NAME}**: {what}; medians of {rounds}\n\n{grid(lines)}\n"


def _first_update(folder: str) -> Iterator[str]:
    import jax

    from benchmarks import train
    from jaxgpt.devices import start_devices
    from jaxgpt.train.loop import run

    start_devices("cpu")
    yield "imports and device"
    stage, trainer = train.begin(replace(train.CPU, cache_dir=os.environ["XDG_CACHE_HOME"]))
    yield "text read and encoded"
    state = trainer.start(stage.init_params)
    yield "weights drawn"
    trainer.begin(stage.batch, 0)  # as `Stage.fit` does
    stage.evaluate(trainer, state.whole)
    yield "first evaluation, its program compiled, and the step's beside it"
    updates = run(trainer.step, state, partial(trainer.feed, stage.batch), until=2)
    for phase, (_, _, metrics) in zip(("first update", "second update"), updates, strict=True):
        jax.block_until_ready(metrics)
        yield phase


def _first_token(name: str, folder: str) -> Iterator[str]:
    from jaxgpt.decode import stream
    from jaxgpt.devices import start_devices
    from jaxgpt.runs.weights import open_model

    start_devices("cpu")
    yield "imports and device"
    config, params, tokenizer = open_model(f"{folder}/{name}")
    yield "weights and tokenizer read"
    prompt = tokenizer.encode("I enjoy walking with my cute dog")
    tokens = stream(config, params, [prompt], max_new_tokens=3, eos_token_id=None)
    phases = ("first token, the prompt's program compiled", "second token, a step's program compiled", "third token")
    for phase, _ in zip(phases, tokens, strict=True):
        yield phase


def _xl_drawn(folder: str) -> Iterator[str]:
    import jax

    from jaxgpt import GPT, GPTConfig
    from jaxgpt.devices import start_devices
    from jaxgpt.train import init_params

    start_devices("cpu")
    yield "imports and device"
    jax.block_until_ready(init_params(GPT(GPTConfig.preset("gpt2-xl")), seed=0))
    yield "weights drawn"


WAITS: dict[str, tuple[str, Callable[[str], Iterator[str]]]] = {
    "update": ("`make train` to its first updates", _first_update),
    "token": (
        "`generate.py` to its first tokens, GPT-2 124M from a folder in Hugging Face's format",
        partial(_first_token, "model"),
    ),
    "token-of-run": ("`generate.py` to its first tokens, GPT-2 124M from a run's folder", partial(_first_token, "run")),
    "xl": ("a new gpt2-xl", _xl_drawn),
}


def main(name: str, folder: str, out: str) -> None:
    """Write the seconds that each phase took since the one before, the first since the process was begun.

    They are of the clock, and of all cores' work for this process.
    """
    times, last, worked = [], float(os.environ[_BEGUN]), 0.0
    for phase in WAITS[name][1](folder):
        now, work = time.time(), time.process_time()
        times.append((phase, now - last, work - worked))
        last, worked = now, work
    Path(out).write_text(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
