"""A stage of training: its model, its data, what it minimises and what it shows; and the run that all stages share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from jaxgpt import checks, evaluate, model, objectives, runs, train
from jaxgpt.devices import (
    compute_dtype,
    describe_devices,
    in_host_memory,
    is_first,
    refuse_beyond_memory,
    start_devices,
)
from jaxgpt.errors import UsageError, naming
from jaxgpt.flags import flags_where
from jaxgpt.model.atlas import Parameter, count, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.folder import holds_run, move_aside, read_record, versions, write_record
from jaxgpt.runs.manifest import Progress
from jaxgpt.train.config import RunConfig, SampleConfig
from jaxgpt.train.metrics import described
from jaxgpt.train.resume import is_shown, refuse_differences, use_folder

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxgpt.tokenizers import Tokenizer

FlagsT = TypeVar("FlagsT", bound=RunConfig)
Record = Mapping[str, Any]
"""What a run's config.json holds."""


class Stage(Generic[FlagsT]):
    """One kind of training. Each stage says in `open` with what it begins, and in the methods below it what it does.

    Attributes:
        name: the stage's, on the command line.
        Flags: the record of its flags.
        flags: what this run is asked.
        config, tokenizer: the model's, once it is open.
        data: hashes of all that decides the batches; a resumed run's must be the same.
        about: lines that say on what it is trained.
        recorded: names of what `record` gives.
        counted: whether an update's arithmetic is that of next tokens over all of the model, which is known.
        per_token: whether its loss is that of a text's tokens.
        updates_per_iteration: for a stage whose iterations, which the flags count, are more than an update.
    """

    name: ClassVar[str]
    Flags: ClassVar[type[Any]]
    recorded: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[bool] = False
    per_token: ClassVar[bool] = False

    config: GPTConfig
    tokenizer: Tokenizer
    data: Mapping[str, str]
    about: list[str]
    updates_per_iteration = 1

    def __init__(
        self,
        flags: FlagsT | None = None,
        *,
        optimizer: Any = None,
        objective: Callable[[model.GPT], objectives.Objective] | None = None,
        **given: Any,
    ) -> None:
        """Take what is asked; nothing is opened yet.

        Args:
            flags: all of it, or None for `given`.
            optimizer: an optax transformation in the place of AdamW as the flags say.
            objective: model → objective, in the place of the stage's own.
            given: flags by their names. What is left out has its default, also where a run goes on: train.py takes the
                run's own instead.

        Raises:
            UsageError: a value out of range, two that contradict each other, flags of another stage, or both kinds.
        """
        if flags is not None and given:
            raise UsageError(f"{type(self).__name__} takes all flags in a record or by their names, not both")
        self.flags = (
            self.Flags(**given) if flags is None else checks.instance("flags", flags, self.Flags, self.Flags.__name__)
        )
        self.optimizer, self._objective = optimizer, objective
        self._run: str | None = None  # the name that a run's checkpoints hold; a new one gets its own

    # What each stage says.

    def open(self, folder: Path, record: Record | None) -> None:
        """Open model, tokenizer and data, as a run begins or, with its record, as it goes on.

        Raises:
            UsageError: they don't fit each other, the flags, or the run that goes on.
        """
        raise NotImplementedError

    def init_params(self, shardings: Any) -> Any:
        """Return all parameters at step 0; what is not trained, also when a run is resumed."""
        raise NotImplementedError

    def make_objective(self, model: model.GPT) -> objectives.Objective:
        """Return what is minimised."""
        raise NotImplementedError

    def batch(self, step: int, *, shard: int = 0, num_shards: int = 1) -> Any:
        """Return the batch of the update after `step` others, or one host's rows of it.

        It is a record with the rows first in every array, and `tokens` among them.
        """
        raise NotImplementedError

    def eval_batches(self, *, shard: int = 0, num_shards: int = 1) -> Iterator[Any]:
        """Yield the fixed batches on which the objective is evaluated, or one host's rows of them."""
        raise NotImplementedError

    def show(self, folder: Path, params: Any) -> None:
        """Print what came of a run, from all parameters at its end; called in every process."""
        raise NotImplementedError

    # What some stages say otherwise.

    def parameters(self) -> tuple[Parameter, ...]:
        """Return all parameters that the objective reads."""
        return tuple(parameters(self.config))

    def trained(self, path: tuple[str, ...]) -> bool:
        """Return whether the parameter at a path is trained."""
        return True

    def carried(self) -> Any:
        """Return what the state carries from one update to later ones, at the beginning."""
        return ()

    def record(self) -> dict[str, Any]:
        """Return more entries of the run's record, those that `recorded` names."""
        return {}

    def write_files(self, folder: Path, trainer: train.Trainer) -> None:
        """Write what else a new run's folder needs; called in every process."""

    def excerpt(self) -> Sequence[int]:
        """Return the ids of a text to validate on, at work on which a page shows the model."""
        return next(iter(self.eval_batches())).tokens[0].tolist()

    def before_loop(self, trainer: train.Trainer) -> None:
        """Make what the loop needs on the devices."""

    def updates(
        self, trainer: train.Trainer, state: train.TrainState
    ) -> Iterator[tuple[int, train.TrainState, train.StepMetrics]]:
        """Yield (iterations done, state, metrics) up to the end of the run."""
        batches = partial(trainer.feed, self.batch)
        return train.run(trainer.step, state, batches, until=self.flags.max_iters)

    def only_plans(self) -> bool:
        """Return whether nothing is to run, as all that was asked for has been said."""
        return False

    def evaluate(self, trainer: train.Trainer, params: Any) -> dict[str, float]:
        """Return means by their names; "loss" is among them, the lower the better."""
        return trainer.evaluate(params, self.eval_batches(**trainer.shard))

    def speak(self, params: Any) -> str:
        """Return a sample of what the model says, for stages whose flags are also a `SampleConfig`."""
        raise NotImplementedError

    # The run.

    def run(self, out_dir: str | Path | None = None) -> None:
        """Train as the flags say, and show what came of it: all that `train.py` does.

        Args:
            out_dir: the run's folder; None for the flags'.

        Raises:
            UsageError: what is asked can't be done; the message names it.
            RunError: the run failed.
        """
        from jaxgpt.hosts import one_for_all
        from jaxgpt.mesh import make_mesh
        from jaxgpt.runs.checkpoint import quiet_traces
        from jaxgpt.train.profile import check_profile

        if out_dir is not None:
            self.flags = dataclasses.replace(self.flags, out_dir=str(out_dir))
        if self.only_plans():
            return
        flags, folder = self.flags, Path(self.flags.out_dir)
        with one_for_all():
            start_devices(flags.device, distributed=flags.distributed, debug_nans=flags.debug_nans)
            quiet_traces()
            with use_folder(flags, folder) as progress:
                if progress is not None and not flags.eval_only and self._is_done(folder, progress.step):
                    return
                if flags.profile is not None:
                    check_profile(flags.profile, updates=flags.max_iters - (0 if progress is None else progress.step))
                self._open(folder, progress)
                trainer = self.trainer(make_mesh(fsdp=flags.fsdp, tensor=flags.tensor))
                if flags.dry_run:
                    print(trainer.budget(self.batch(0, **trainer.shard), counted=self.counted))
                    return
                if flags.writes:
                    self._begin_folder(folder, progress, trainer)
                saved = None if progress is None else runs.Checkpoints(folder, keep=flags.keep)
                if saved is None or progress is None:
                    state = trainer.start(self.init_params)
                else:
                    state = trainer.resume(self.init_params, saved, progress.step)
                if flags.eval_only:
                    self.before_loop(trainer)
                    found = self.evaluate(trainer, state.whole)
                    if self.per_token:
                        score = evaluate.measure_batches(found["loss"], self.eval_batches(), self.tokenizer).metrics()
                        found |= {name: score[name] for name in ("perplexity", "bits_per_byte")}
                    where = "new" if progress is None else f"step {progress.step}"
                    print(f"{where}: {described(found)}")
                    return
                checkpoints = saved or runs.Checkpoints(folder, keep=flags.keep)
                state, progress = self.fit(trainer, folder, state, progress or Progress(0), checkpoints)
                with naming(folder):
                    if progress.step == flags.max_iters:
                        self.show(folder, state.whole)
                        if flags.explore and is_first():
                            from jaxgpt.stages.page import write_page  # imports matplotlib, for half a second

                            write_page(self, folder)
                    elif is_first():
                        print(f"curve: {train.plot(folder)}")

    def fit(
        self,
        trainer: train.Trainer,
        folder: Path,
        begin: train.TrainState,
        progress: Progress,
        checkpoints: runs.Checkpoints,
    ) -> tuple[train.TrainState, Progress]:
        """Train up to `max_iters`, or to the step in which a signal comes; all that is written goes into `folder`.

        Args:
            trainer: this stage's.
            folder: the run's.
            begin: the state to begin with.
            progress: how far the run has come.
            checkpoints: where to save.

        Returns:
            The last state, which is saved, and how far the run has come.

        Raises:
            RunError: see `jaxgpt.train.recorder.recording`.
        """
        trainer.begin(self.batch, progress.step)
        self.before_loop(trainer)
        recording = train.recording(
            self.flags, folder, progress, checkpoints,
            line=self._line(trainer, progress.step),
            evaluate=partial(self.evaluate, trainer),
            schedule=train.schedule(self.flags.times(self.updates_per_iteration)) if self.optimizer is None else None,
            speak=self.speak,
            sample_interval=self.flags.sample_interval if isinstance(self.flags, SampleConfig) else None,
        )  # fmt: skip
        state = begin
        with recording as recorder:
            recorder.begin(begin)
            for done, state, metrics in self.updates(trainer, begin):
                recorder.update(done, metrics)
                if recorder.log_due:
                    recorder.log(metrics)
                if recorder.evaluation_due:
                    recorder.evaluate(state)
                if recorder.sample_due:
                    recorder.sample(state)
                if recorder.save_due:
                    recorder.save(state)
                if recorder.last:
                    break
        return state, recorder.progress

    def trainer(self, mesh: Mesh) -> train.Trainer:
        """Return the compiled step and all that belongs to it, on a mesh."""
        return train.Trainer(
            self.flags,
            mesh,
            config=self.config,
            objective=self.objective(),
            parameters=self.parameters(),
            trained=self.trained,
            optimizer=self.optimizer,
            updates=self.updates_per_iteration,
            carried=self.carried(),
        )

    def build_model(self) -> model.GPT:
        """Return the module."""
        import jax.numpy as jnp

        return model.GPT(self.config, jnp.dtype(compute_dtype(self.flags.dtype)), self.flags.remat)

    def objective(self) -> objectives.Objective:
        """Return what this run minimises."""
        return (self._objective or self.make_objective)(self.build_model())

    def _open(self, folder: Path, progress: Progress | None) -> None:
        """Open everything, in all processes or in none, and make sure that they are about to do the same."""
        from jaxgpt.hosts import refuse_disagreement, together

        with together():
            record = None if progress is None else self._read_record(folder)
            with in_host_memory():
                self.open(folder, record)
            runs.check_tokenizer(folder, self.config, self.tokenizer)
            if not self.flags.dry_run:
                total = count(self.config)["total"]
                refuse_beyond_memory(4 * total, f"the model's {total:,} parameters")
            if record is not None and not self.flags.ignore_data_change:
                advice = "; --ignore_data_change to go on all the same"
                refuse_differences(folder, record.get("data") or {}, self.data, advice)
        flags = {**dataclasses.asdict(self.flags), **dataclasses.asdict(self.config), **versions()}
        own = flags_where(self.flags, "per_host", True)
        same = {name: value for name, value in flags.items() if name not in own}
        refuse_disagreement({**same, **{f"the hash of {name}": value for name, value in self.data.items()}})

    def _read_record(self, folder: Path) -> Record:
        """Return the record of the run that goes on.

        Raises:
            UsageError: see `read_record`; or an entry is missing that such a run has.
        """
        record = read_record(folder, ignore_change=self.flags.ignore_config_change)
        self._run = record.get("run")
        for name in self.recorded:
            if name not in record:
                where = f"{folder / 'config.json'}: {name} is missing"
                raise UsageError(f"{where}, which the record of a run of {self.name} has")
        return record

    def _begin_folder(self, folder: Path, progress: Progress | None, trainer: train.Trainer) -> None:
        """Write what the run is defined by, so that nothing else is needed to resume it, and say what it is."""
        from jaxgpt.hosts import together

        if progress is None:
            with together(), naming(folder):
                if is_first():
                    if holds_run(folder):  # --overwrite, and nothing was wrong
                        move_aside(folder)
                    self.tokenizer.save(folder)
            with train.clear_errors(), naming(folder):
                self.write_files(folder, trainer)
        with together(), naming(folder):
            if is_first():
                about = {"stage": self.name, "flags": dataclasses.asdict(self.flags), "data": dict(self.data)}
                write_record(folder, self.config, run=self._run, **about, **self.record())
        config = self.config
        sizes = f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.n_positions}"
        print(f"model: {sizes};\n       {count(config)['total']:,} parameters on {describe_devices()}")
        for line in (trainer.attention(self.batch(0, **trainer.shard)), *self.about):
            print(line)

    def _is_done(self, folder: Path, step: int) -> bool:
        """Return whether there is nothing left to do, and say that a run has come to its end."""
        from jaxgpt.hosts import gather

        if step < self.flags.max_iters:
            return False
        print(f"{folder} is already done: step {step} of {self.flags.max_iters}")
        return self.flags.dry_run or step > self.flags.max_iters or gather(is_shown(folder, step))[0]

    def _line(self, trainer: train.Trainer, step: int) -> train.ProgressLine:
        # Of this process's rows; all processes have as many.
        tokens = self.batch(step, **trainer.shard).tokens
        return train.ProgressLine(
            step=step,
            until=self.flags.max_iters,
            tokens_per_step=tokens.size * trainer.shard["num_shards"] * self.updates_per_iteration,
            flops_per_token=train.flops_per_token(self.config, tokens.shape[-1]) if self.counted else None,
        )


def show_curve(folder: Path, following: str) -> None:
    """Draw the run's curve, and say what can be done next."""
    if is_first():
        print(f"curve: {train.plot(folder)}\nnext:  {following}")
