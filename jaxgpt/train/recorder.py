"""The recorder of a run: rows of metrics, evaluations, checkpoints and the live line, while its loop goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import indent
from typing import Any

import jax
import optax

from jaxgpt.errors import RunError
from jaxgpt.hosts import gather
from jaxgpt.progress import Bar, say
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.manifest import Progress, steps
from jaxgpt.signals import Stop, stop_on_signal
from jaxgpt.train.config import RunConfig
from jaxgpt.train.metrics import MetricsLog, NoMetrics, described
from jaxgpt.train.profile import StepProfile
from jaxgpt.train.progress_line import ProgressLine
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import StepMetrics
from jaxgpt.train.trainer import clear_errors
from jaxgpt.visible import visible

ON_THE_LINE = ("accuracy", "margin", "score", "kl")
"""Metrics of objectives that the progress line shows; the file has all."""


class Recorder:
    """Logs, evaluates and saves at the intervals that the flags ask for.

    Attributes:
        progress: how far the run has come.
        last: whether this update is the run's last, or a signal asks to stop.
    """

    def __init__(
        self,
        flags: RunConfig,
        folder: Path,
        progress: Progress,
        checkpoints: Checkpoints,
        *,
        line: ProgressLine,
        log: MetricsLog | NoMetrics,
        stop: Stop,
        evaluate: Callable[[Any], dict[str, float]],
        schedule: optax.Schedule | None,
        speak: Callable[[Any], str],
        sample_interval: int | None,
    ) -> None:
        """Begin to record; see `recording`."""
        self.progress, self.last = progress, False
        self._flags, self._folder, self._checkpoints = flags, folder, checkpoints
        self._line, self._log, self._stop, self._evaluate = line, log, stop, evaluate
        self._schedule = None if schedule is None else jax.jit(schedule)
        self._begun, self._saved = progress.step, time.monotonic()
        self._streak: Any = 0
        self._speak, self._sample_interval = speak, sample_interval
        self._profile = None if flags.profile is None else StepProfile(Path(flags.profile), progress.step)

    def begin(self, state: TrainState) -> None:
        """Evaluate and save a state of step 0, from which a run that ends early goes on."""
        self._streak = int(state.streak)
        if self._begun == 0:
            self.evaluate(state)
            if not steps(self._folder):  # else the run goes on from it
                self._checkpoints.save(state, self.progress)

    def update(self, done: int, metrics: StepMetrics) -> None:
        """Take note of an update."""
        # The update before this one is done by now, so reading its count keeps nobody waiting.
        self._check_streak(done - 1)
        self._streak = metrics.streak
        if done == self._begun + 1:
            self._line.first_step(metrics.loss)
        self._line.advance(done)
        self.progress = replace(self.progress, step=done)
        self._checkpoints.check()
        if self._profile is not None:
            self._profile.update(done, metrics.loss)
        self.last = done == self._flags.max_iters or self._stop.requested(done)

    @property
    def log_due(self) -> bool:
        return self._due(self._flags.log_interval)

    @property
    def evaluation_due(self) -> bool:
        return self._due(self._flags.eval_interval)

    @property
    def sample_due(self) -> bool:
        """True when a sample is due; what is said at the end of a run is shown with what else came of it."""
        done, interval = self.progress.step, self._sample_interval
        return interval is not None and done % interval == 0 and done < self._flags.max_iters

    @property
    def save_due(self) -> bool:
        """True when a checkpoint is due: by the interval, for the best evaluation so far, by time, or at the end."""
        done = self.progress.step
        by_steps = done % self._flags.save_interval == 0 or self.progress.best_step == done
        return by_steps or self._late(done) or self.last

    def log(self, metrics: StepMetrics) -> None:
        """Write a row of metrics, and show it on the line."""
        done, rate = self.progress.step, None
        if self._schedule is not None:
            with self._line.paused():  # the first time it is compiled
                # While the step still runs: when it is read the device has no work.
                rate = self._schedule(metrics.updates)
        loss, norm, skipped = (value.item() for value in (metrics.loss, metrics.grad_norm, metrics.skipped))
        lr = None if rate is None else float(rate)
        speed, mfu, left = self._line.read(done)
        more = {name: float(value) for name, value in metrics.metrics.items()}
        row = {"loss": loss, **more, "lr": lr, "grad_norm": norm, "skipped": skipped}
        self._log.write(done, "train", **row, tokens_per_s=speed, mfu=mfu)
        parts = [f"loss {loss:.4f}"]
        parts += [] if lr is None else [f"lr {lr:.2e}"]
        parts += [f"{name} {more[name]:.3f}" for name in ON_THE_LINE if name in more]
        parts += [] if speed is None else [f"{speed:,.0f} tokens/s", f"{Bar.format_interval(left)} left"]
        parts += [] if mfu is None else [f"MFU {mfu:.1%}"]
        parts += [] if skipped == 0 else [f"skipped {skipped}"]
        self._line.show(done, " | ".join(parts))

    def evaluate(self, state: TrainState) -> None:
        """Evaluate the state, and write what was found."""
        with self._line.paused():
            found = self._evaluate(state.whole)
        step = self.progress.step
        self._log.write(step, "val", **found)
        say(f"step {step}: {described(found)}")
        self.progress = self.progress.evaluated(found["loss"])

    def sample(self, state: TrainState) -> None:
        """Let the model speak, and show and keep what it says."""
        step = self.progress.step
        with self._line.paused():
            text = self._speak(state.whole)  # in every process of the run
        if jax.process_index() == 0:
            write_sample(self._folder, step, text)
            self._log.write_text(step, "sample", indent(text, "    "))  # as it stands
        say(f"sample of step {step}:\n{visible(text)}\n")

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint; a state that ends the run is never saved as the latest."""
        self._check_streak(self.progress.step)
        with self._line.paused():
            self._checkpoints.save(state, self.progress)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Leave nothing running."""
        self._line.close()
        if self._profile is not None:
            self._profile.close()

    def end(self) -> None:
        """Wait until all is written, and say so if the run was stopped."""
        self._checkpoints.wait()
        if (step := self.progress.step) < self._flags.max_iters:
            reason = f"{self._stop.reason}: stopped and saved at step {step}"
            say(f"{reason}; --init_from resume goes on from here")

    def _due(self, interval: int) -> bool:
        return self.progress.step % interval == 0 or self.progress.step == self._flags.max_iters

    def _late(self, done: int) -> bool:
        """Return whether to save because of the time; looked at when rows are logged, as processes have to agree."""
        if self._flags.save_minutes is None or done % self._flags.log_interval:
            return False
        return gather(time.monotonic() - self._saved > 60 * self._flags.save_minutes)[0]

    def _check_streak(self, step: int) -> None:
        if (streak := int(self._streak)) >= self._flags.max_skips:
            self._checkpoints.wait()
            raise RunError(
                f"{streak} updates in a row had to be skipped, up to step {step}, because the loss or its gradient was"
                f" not finite{' or spiked' if self._flags.skip_spikes else ''}; {self._checkpoints.last_good()};"
                " try a lower --learning_rate, or --debug_nans to see where it begins"
            )


def write_sample(folder: Path, step: int, text: str) -> None:
    """Keep what the model said after `step` updates, in a run's folder."""
    file = folder / "samples" / f"{step}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")


@contextmanager
def recording(
    flags: RunConfig,
    folder: Path,
    progress: Progress,
    checkpoints: Checkpoints,
    *,
    line: ProgressLine,
    evaluate: Callable[[Any], dict[str, float]],
    schedule: optax.Schedule | None,
    speak: Callable[[Any], str],
    sample_interval: int | None,
) -> Iterator[Recorder]:
    """Give a recorder for the time of a loop, which signals may ask to stop.

    Args:
        flags: the run's.
        folder: where everything is written.
        progress: how far the run has come.
        checkpoints: where states are saved.
        line: shows how far the run is, and how fast.
        evaluate: all weights → means by their names; "loss" is among them, the lower the better.
        schedule: the learning rate by updates, to be logged; None where the flags don't decide it.
        speak: all weights → a sample of what the model says.
        sample_interval: updates between samples; None for none.

    Raises:
        RunError: a file could not be written, too many updates in a row had to be skipped, the devices' memory was
            not enough, or another process of the run failed.
    """
    log = NoMetrics()
    with clear_errors(checkpoints.finish):
        if jax.process_index() == 0:
            log = MetricsLog(
                folder, step=progress.step, tensorboard=flags.tensorboard, wandb=flags.wandb, flags=asdict(flags)
            )
        with closing(log), stop_on_signal() as stop:
            recorder = Recorder(
                flags, folder, progress, checkpoints,
                line=line, log=log, stop=stop, evaluate=evaluate, schedule=schedule,
                speak=speak, sample_interval=sample_interval,
            )  # fmt: skip
            with closing(recorder):
                yield recorder
                recorder.end()
