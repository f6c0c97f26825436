"""What every stage shares around the loop: mesh, optimizer, compiled step, and in the loop log, evaluate, save.

A stage brings a model, an objective, and batches as functions of an index; nothing else differs.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt.devices import compute_dtype
from jaxgpt.errors import RunError, UsageError, out_of_memory
from jaxgpt.hosts import gather
from jaxgpt.mesh import batch_divisor, host_shard, put_batch
from jaxgpt.model.attention_kernels import report
from jaxgpt.text.batches import Batch
from jaxgpt.train.budget import flops_per_token, table
from jaxgpt.train.checkpoint import Checkpoints
from jaxgpt.train.config import RunConfig
from jaxgpt.train.loop import make_evaluate, run
from jaxgpt.train.manifest import Progress, steps
from jaxgpt.train.meter import Meter, duration
from jaxgpt.train.metrics import MetricsLog, NoMetrics
from jaxgpt.train.optimizer import adamw, schedule
from jaxgpt.train.state import TrainState, abstract_state, join, split
from jaxgpt.train.step import StepMetrics, make_step
from jaxgpt.train.stop import stop_on_signal
from jaxgpt.train.task import Task

SHOWN = ("accuracy", "margin", "score", "kl")
"""Metrics of objectives that the progress line shows; the file has all."""


class Trainer:
    """A task made ready to run on all devices."""

    def __init__(self, flags: RunConfig, task: Task, mesh: Mesh) -> None:
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
        self.updates = 1 if task.outer is None else task.outer.updates
        self.carried = () if task.outer is None else task.outer.carried
        recipe = flags.times(self.updates)
        self.optimizer, self.schedule = adamw(recipe, task.config), jax.jit(schedule(recipe))
        self.abstract = abstract_state(self.mesh, task.parameters, self.optimizer, task.moves, self.carried)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        step = make_step(
            task.objective,
            self.optimizer,
            seed=flags.seed,
            accumulate=flags.gradient_accumulation_steps,
            skip_spikes=flags.skip_spikes,
        )
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, None))
        self._sums = make_evaluate(task.objective)

    def budget(self) -> str:
        """Return the table of parameters, memory and arithmetic; compiles the step to learn its memory."""
        batch = put_batch(self.mesh, self.task.batches(0))
        compiled = self.step.lower(self.abstract, batch).compile()
        length = batch.tokens.shape[-1]
        rows = batch.tokens.size // length
        return table(self.task.config, length=length, rows=rows, compiled=compiled, counted=self.task.counted)

    def attention(self) -> str:
        """Return a line that says which attention trains, and why."""
        batch, config = self.task.batches(0), self.task.config
        packed = isinstance(batch, Batch) and batch.segment_ids is not None
        line = report(config, compute_dtype(self.flags.dtype), batch.tokens.shape[-1], packed=packed)
        if self.flags.dropout is None and config.attn_pdrop == 0 < config.resid_pdrop:
            line += "; attn_pdrop is 0, as of every pretrained model unless --dropout is given"
        return f"attention: {line}"

    def start(self) -> TrainState:
        """Return the state at step 0, which takes over the memory of the task's parameters."""

        def begin(params: Any) -> TrainState:
            return replace(TrainState.create(params, self.optimizer, carried=self.carried), params=None, frozen=None)

        with clear_errors():
            params, frozen = self._begin()
            rest = jax.jit(begin, out_shardings=replace(self.shardings, params=None, frozen=None))(params)
            return replace(rest, params=params, frozen=frozen)

    def resume(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """Return the state of a verified checkpoint; what is not trained is the task's."""
        with clear_errors():
            like = replace(self.abstract, frozen=self._begin()[1]) if self.abstract.frozen else self.abstract
            return checkpoints.restore(like, step, verified=True)

    def fit(
        self, folder: Path, begin: TrainState, progress: Progress, checkpoints: Checkpoints
    ) -> tuple[TrainState, Progress]:
        """Train up to `max_iters`, or to the step in which a signal comes; all that is written goes into `folder`.

        Args:
            folder: the run's.
            begin: the state to begin with.
            progress: what is known of the run so far.
            checkpoints: where to save.

        Returns:
            The last state, which is saved, and how far the run has come.

        Raises:
            RunError: a file could not be written, too many updates in a row had to be skipped, the devices' memory
                was not enough, or another process of the run failed.
        """
        flags, begun = self.flags, progress.step
        meter = self._meter(begun)
        saved, streak, state = time.monotonic(), int(begin.streak), begin
        with (
            clear_errors(checkpoints.finish),
            contextlib.closing(self._open_log(folder, begun)) as log,
            stop_on_signal() as stop,
        ):
            if begun == 0:
                progress = self._evaluate(state, progress, log, meter)
                if not steps(folder):  # else the run goes on from it
                    checkpoints.save(state, progress)
            for done, state, metrics in self._run(begin):
                # The update before this one is done by now, so reading its count keeps nobody waiting.
                self._check_streak(done - 1, int(streak), checkpoints)
                streak = metrics.streak
                if done == begun + 1:
                    meter.first_step(metrics.loss)
                progress = replace(progress, step=done)
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
        return state, progress

    def _begin(self) -> tuple[Any, Any]:
        """Return the task's parameters, those that are trained and the others, each where it belongs."""
        shardings = self.shardings.params, self.shardings.frozen
        params = self.task.begin(join(*shardings))
        return jax.device_put(split(params, self.task.moves), shardings)

    def _run(self, begin: TrainState) -> Iterator[tuple[int, TrainState, StepMetrics]]:
        if self.task.outer is not None:
            return self.task.outer.run(self.step, begin, self.flags.max_iters)
        return run(self.step, begin, self._put_batch, until=self.flags.max_iters)

    def evaluate(self, params: Any) -> dict[str, float]:
        """Return means over the evaluation batches by their names, the loss among them."""
        if self.task.outer is not None:
            return self.task.outer.evaluate(params)
        batches = (put_batch(self.mesh, self.task.evaluation(i)) for i in range(self.task.evaluations))
        return self._sums(params, batches)

    def _put_batch(self, index: int) -> Any:
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
        # Of this process's rows; all processes have as many.
        tokens = self.task.batches(step).tokens
        return Meter(
            step=step,
            until=self.flags.max_iters,
            tokens_per_step=tokens.size * host_shard(self.mesh)["num_shards"] * self.updates,
            flops_per_token=flops_per_token(self.task.config, tokens.shape[-1]) if self.task.counted else None,
        )

    def _evaluate(self, state: TrainState, progress: Progress, log: MetricsLog | NoMetrics, meter: Meter) -> Progress:
        with meter.paused():
            found = self.evaluate(state.whole)
        log.write(progress.step, "val", **found)
        meter.say(f"step {progress.step}: " + ", ".join(f"val {name} {value:.4f}" for name, value in found.items()))
        return progress.evaluated(found["loss"])

    def _log(self, done: int, metrics: StepMetrics, log: MetricsLog | NoMetrics, meter: Meter) -> None:
        with meter.paused():  # the first time it is compiled
            rate = self.schedule(metrics.updates)  # while the step still runs: when it is read the device has no work
        loss, norm, skipped, lr = (value.item() for value in (metrics.loss, metrics.grad_norm, metrics.skipped, rate))
        speed, mfu, left = meter.read(done)
        more = {name: float(value) for name, value in metrics.metrics.items()}
        row = {"loss": loss, **more, "lr": lr, "grad_norm": norm, "skipped": skipped}
        log.write(done, "train", **row, tokens_per_s=speed, mfu=mfu)
        parts = [f"step {done}/{self.flags.max_iters}", f"loss {loss:.4f}", f"lr {lr:.2e}"]
        parts += [f"{name} {more[name]:.3f}" for name in SHOWN if name in more]
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
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if (reason := out_of_memory(error)) is not None:
            advice = "try a smaller --batch_size with more --gradient_accumulation_steps, or --remat"
            raise RunError(f"{reason}; {advice}; {last_good()}") from error
        if jax.process_count() > 1:
            reason = str(error).splitlines()[0]
            raise RunError(f"another process of this run, or the network, failed: {reason}; {last_good()}") from error
        raise
