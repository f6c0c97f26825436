"""What every stage shares around the loop: mesh, optimizer, compiled step, and in the loop log, evaluate, save.

A stage brings a model, an objective, and batches as functions of an index; nothing else differs.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.errors import RunError, UsageError
from jaxgpt.hosts import gather, one_for_all
from jaxgpt.mesh import batch_divisor, put_batch
from jaxgpt.model.layers import GPT
from jaxgpt.text.batches import Batch
from jaxgpt.train.budget import flops_per_token, table
from jaxgpt.train.checkpoint import Checkpoints
from jaxgpt.train.config import TrainConfig
from jaxgpt.train.loop import make_evaluate, run
from jaxgpt.train.manifest import Progress, steps
from jaxgpt.train.meter import Meter, duration
from jaxgpt.train.metrics import MetricsLog, NoMetrics
from jaxgpt.train.objectives import Objective
from jaxgpt.train.optimizer import adamw, schedule
from jaxgpt.train.state import TrainState, abstract_state, init_params
from jaxgpt.train.step import StepMetrics, make_step
from jaxgpt.train.stop import stop_on_signal


@dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
        model: whose parameters move.
        objective: what is minimised.
        batches: updates done → the next update's batch, this process's rows of it.
        evaluation: index → one of the fixed batches on which the objective is evaluated.
    """

    model: GPT
    objective: Objective
    batches: Callable[[int], Batch]
    evaluation: Callable[[int], Batch]


class Trainer:
    """A task made ready to run on all devices."""

    def __init__(self, flags: TrainConfig, task: Task, mesh: Mesh) -> None:
        """Lay everything out; nothing is compiled yet.

        Raises:
            UsageError: the batch can't be divided among the devices.
        """
        self.flags, self.task, self.mesh = flags, task, mesh
        divisor = batch_divisor(mesh)
        if over := flags.batch_size % divisor:
            near = sorted({max(divisor, flags.batch_size - over), flags.batch_size - over + divisor})
            raise UsageError(
                f"batch_size {flags.batch_size} can't be divided among {divisor} devices; nearest are "
                + " and ".join(map(str, near))
            )
        self.optimizer = adamw(flags, task.model.config)
        self.schedule = schedule(flags)
        self.abstract = abstract_state(self.mesh, task.model, self.optimizer)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        step = make_step(
            task.objective,
            self.optimizer,
            seed=flags.seed,
            accumulate=flags.gradient_accumulation_steps,
            skip_spikes=flags.skip_spikes,
        )
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, None))
        self.evaluate = make_evaluate(task.objective)

    def budget(self) -> str:
        """Return the table of parameters, memory and arithmetic; compiles the step to learn its memory."""
        batch = put_batch(self.mesh, self.task.batches(0))
        rows, length = batch.tokens.shape
        compiled = self.step.lower(self.abstract, batch).compile()
        return table(self.task.model.config, length=length, rows=rows, compiled=compiled)

    def start(self, params: Any | None = None) -> TrainState:
        """Return the state at step 0, from these parameters, whose memory it takes over, or from new ones."""

        def begin(params: Any) -> TrainState:
            return dataclasses.replace(TrainState.create(params, self.optimizer), params=None)

        with clear_errors():
            if params is None:
                params = init_params(self.task.model, seed=self.flags.seed, shardings=self.shardings.params)
            params = jax.device_put(params, self.shardings.params)
            rest = jax.jit(begin, out_shardings=dataclasses.replace(self.shardings, params=None))(params)
            return dataclasses.replace(rest, params=params)

    def fit(self, folder: Path, begin: TrainState, progress: Progress, checkpoints: Checkpoints) -> TrainState:
        """Train up to `max_iters`, or to the step in which a signal comes; all that is written goes into `folder`.

        Args:
            folder: the run's.
            begin: the state to begin with.
            progress: what is known of the run so far.
            checkpoints: where to save.

        Returns:
            The last state, which is saved.

        Raises:
            RunError: a file could not be written, too many updates in a row had to be skipped, the devices' memory
                was not enough, or another process of the run failed.
        """
        flags, begun = self.flags, progress.step
        meter = self._meter(begun)
        saved, streak, state = time.monotonic(), int(begin.streak), begin
        with (
            one_for_all(),
            clear_errors(checkpoints.last_good),
            contextlib.closing(self._open_log(folder, begun)) as log,
            stop_on_signal() as stop,
        ):
            if begun == 0:
                progress = self._evaluate(state, progress, log, meter)
                if not steps(folder):  # else the run goes on from it
                    checkpoints.save(state, progress)
            for done, state, metrics in run(self.step, begin, self._put_batch, until=flags.max_iters):
                # The update before this one is done by now, so reading its count keeps nobody waiting.
                self._check_streak(done - 1, int(streak), checkpoints)
                streak = metrics.streak
                if done == begun + 1:
                    meter.first_step(metrics.loss)
                progress = dataclasses.replace(progress, step=done)
                last = done == flags.max_iters or stop.requested(done)
                if done % flags.log_interval == 0 or done == flags.max_iters:
                    self._log(done, metrics, log, meter)
                if done % flags.eval_interval == 0 or done == flags.max_iters:
                    progress = self._evaluate(state, progress, log, meter)
                if done % flags.save_interval == 0 or progress.best_step == done or self._late(done, saved) or last:
                    # A state that ends the run is never saved as the latest.
                    self._check_streak(done, int(streak), checkpoints)
                    with meter.paused():
                        checkpoints.save(state, progress)
                    saved = time.monotonic()
                checkpoints.check()
                if last:
                    break
            checkpoints.wait()
        if progress.step < flags.max_iters:
            meter.say(f"{stop.reason}: stopped and saved at step {progress.step}; --init_from resume goes on from here")
        return state

    def _put_batch(self, index: int) -> Batch:
        return put_batch(self.mesh, self.task.batches(index))

    def _open_log(self, folder: Path, step: int) -> MetricsLog | NoMetrics:
        if jax.process_index() > 0:
            return NoMetrics()
        return MetricsLog(folder, step=step, tensorboard=self.flags.tensorboard, wandb=self.flags.wandb)

    def _late(self, done: int, saved: float) -> bool:
        """Return whether to save because of the time; looked at when rows are logged, as processes have to agree."""
        if self.flags.save_minutes is None or done % self.flags.log_interval:
            return False
        return gather(time.monotonic() - saved > 60 * self.flags.save_minutes)[0]

    def _meter(self, step: int) -> Meter:
        length = self.task.batches(step).tokens.shape[1]
        rows = self.flags.batch_size * self.flags.gradient_accumulation_steps
        flops = flops_per_token(self.task.model.config, length)
        return Meter(step=step, until=self.flags.max_iters, tokens_per_step=rows * length, flops_per_token=flops)

    def _evaluate(self, state: TrainState, progress: Progress, log: MetricsLog | NoMetrics, meter: Meter) -> Progress:
        with meter.paused():
            batches = (put_batch(self.mesh, self.task.evaluation(i)) for i in range(self.flags.eval_iters))
            loss = self.evaluate(state.params, batches)
        log.write(progress.step, "val", loss=loss)
        meter.say(f"step {progress.step}: val loss {loss:.4f}")
        return progress.evaluated(loss)

    def _log(self, done: int, metrics: StepMetrics, log: MetricsLog | NoMetrics, meter: Meter) -> None:
        loss, norm, skipped = float(metrics.loss), float(metrics.grad_norm), int(metrics.skipped)
        speed, mfu, left = meter.read(done)
        with meter.paused():
            rate = float(np.asarray(self.schedule(metrics.updates)))
        log.write(done, "train", loss=loss, lr=rate, grad_norm=norm, skipped=skipped, tokens_per_s=speed, mfu=mfu)
        parts = [f"step {done}/{self.flags.max_iters}", f"loss {loss:.4f}", f"lr {rate:.2e}"]
        parts += [] if speed is None else [f"{speed:,.0f} tokens/s", f"{duration(left)} left"]
        parts += [] if mfu is None else [f"MFU {mfu:.1%}"]
        parts += [] if skipped == 0 else [f"skipped {skipped}"]
        meter.show(" | ".join(parts))

    def _check_streak(self, step: int, streak: int, checkpoints: Checkpoints) -> None:
        if streak >= self.flags.max_skips:
            checkpoints.wait()
            raise RunError(
                f"{streak} updates in a row had to be skipped, up to step {step}, because the loss or its gradient was"
                f" not finite{' or spiked' if self.flags.skip_spikes else ''}; {checkpoints.last_good()};"
                " try a lower --learning_rate, or --debug_nans to see where it begins"
            )


@contextlib.contextmanager
def clear_errors(last_good: Callable[[], str] = lambda: "nothing was written yet") -> Iterator[None]:
    """Turn what a machine can do to a run into an error that says what is left of it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or 'a file'}: {error.strerror or error}; {last_good()}") from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in str(error):
            advice = "try a smaller --batch_size with more --gradient_accumulation_steps, or --remat"
            raise RunError(f"out of device memory: {reason}; {advice}; {last_good()}") from error
        if jax.process_count() > 1:
            raise RunError(f"another process of this run, or the network, failed: {reason}; {last_good()}") from error
        raise
