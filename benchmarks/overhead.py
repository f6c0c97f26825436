"""What training costs beside the step: the whole loop of `train.py`, against a bare jitted step on the same batches.

The loop checks that losses and gradients are finite, skips and counts, watches its data, listens for signals, logs, and
saves a checkpoint with its manifest once a round; the bare step does none of this. Both end with the same evaluation.
By default a checkpoint comes once in 250 steps; `char`, whose steps take a second, has one in 50: more than its share.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import optax
from jax import Array

from benchmarks import train
from benchmarks.timing import Benchmark, Work
from jaxgpt.devices import start_devices
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.manifest import Progress
from jaxgpt.stages.pretrain import PretrainConfig


def benchmarks() -> list[Benchmark]:
    return [_benchmark("overhead-cpu", train.CPU, 250), _benchmark("overhead-char", train.CHAR, 50)]


def _benchmark(name: str, flags: PretrainConfig, steps: int) -> Benchmark:
    flags = replace(flags, warmup_iters=0, eval_iters=1, eval_interval=10**9, save_interval=10**9, tensorboard=False)
    makes = {"train.py's loop": partial(_loop, flags, steps), "bare jitted step": partial(_bare, flags, steps)}
    tokens = flags.batch_size * train.sizes(flags)[1]
    return Benchmark(name, train.describe(flags), "step", steps, makes, tokens=tokens)


def _loop(flags: PretrainConfig, steps: int) -> Work:
    """Return a round of `Stage.fit`."""
    start_devices("cpu")
    folder = Path(tempfile.mkdtemp())
    stage, trainer = train.begin(flags)
    checkpoints = Checkpoints(folder)
    state, progress = trainer.start(stage.init_params), Progress(0)

    def work() -> None:
        nonlocal state, progress
        stage.flags = replace(flags, max_iters=progress.step + steps)
        with contextlib.redirect_stdout(io.StringIO()):
            state, progress = stage.fit(trainer, folder, state, progress, checkpoints)

    return work


def _bare(flags: PretrainConfig, steps: int) -> Work:
    """Return a round of a step without anything around it."""
    start_devices("cpu")
    stage, trainer = train.begin(flags)
    state, numbers = trainer.start(stage.init_params), count()
    objective = stage.objective()
    params, opt_state = state.params, state.opt_state

    def loss(params: Any, batch: Any, key: Array) -> Array:
        sums = objective(params, batch, key)
        return sums.loss / sums.weight

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any, number: int) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params, batch, jax.random.fold_in(jax.random.key(flags.seed), number))
        updates, opt_state = trainer.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def work() -> None:
        nonlocal params, opt_state
        for number in (next(numbers) for _ in range(steps)):
            params, opt_state = step(params, opt_state, trainer.put(stage.batch(number)), number)
        stage.evaluate(trainer, params)

    return work
