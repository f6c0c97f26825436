"""A run of any stage from end to end: its folder, its job, the loop, and what came of it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt.cli.sources import check_tokenizer
from jaxgpt.devices import refuse_beyond_memory, start_devices
from jaxgpt.errors import UsageError, naming
from jaxgpt.hosts import gather, one_for_all, refuse_disagreement, together
from jaxgpt.mesh import make_mesh
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.text.tokenizers import Tokenizer
from jaxgpt.train.checkpoint import Checkpoints, quiet_traces, sweep
from jaxgpt.train.config import RunConfig
from jaxgpt.train.folder import hold, holds_run, move_aside, read_record, versions, write_record
from jaxgpt.train.manifest import Progress, latest, steps
from jaxgpt.train.metrics import plot
from jaxgpt.train.task import Task
from jaxgpt.train.trainer import Trainer

Record = Mapping[str, Any]
"""What a run's config.json holds."""


@dataclass(frozen=True)
class Job:
    """What a stage makes of its flags, before anything is compiled.

    Attributes:
        config: the model's.
        tokenizer: stored with the run.
        data: hashes of all that decides the batches; a resumed run's must be the same.
        about: lines that say on what it is trained.
        task: mesh → what the loop does.
        show: all parameters at the end → what is printed; called in every process.
        files: writes what else a new run's folder needs.
        record: more entries of the run's record.
    """

    config: GPTConfig
    tokenizer: Tokenizer
    data: Mapping[str, str]
    about: Sequence[str]
    task: Callable[[Mesh], Task]
    show: Callable[[Any], None]
    files: Callable[[Path], None] = lambda folder: None
    record: Mapping[str, Any] = field(default_factory=dict)


Stage = Callable[[Any, Path, Record | None], Job]
"""(flags, the run's folder, its record if it goes on or None) → job.

Raises UsageError where model, tokenizer, data and flags don't fit each other, or don't fit the run that goes on.
"""


@one_for_all()
def train(flags: RunConfig, stage: str, prepare: Stage) -> None:
    """Train as the flags say, and show what came of it."""
    start_devices(flags.device, distributed=flags.distributed, debug_nans=flags.debug_nans)
    quiet_traces()
    folder = Path(flags.out_dir)
    with use_folder(flags, folder) as begun:
        if begun is not None and begun.step >= flags.max_iters:
            print(f"{folder} is already done: step {begun.step} of {flags.max_iters}")
            if flags.dry_run or begun.step > flags.max_iters or gather(is_shown(folder, begun.step))[0]:
                return
        with together():
            record = None if begun is None else read_begun(flags, folder, stage)
            job = prepare(flags, folder, record)
            check_tokenizer(folder, job.config, job.tokenizer)
            if not flags.dry_run:
                parameters = count(job.config)["total"]
                refuse_beyond_memory(4 * parameters, f"the model's {parameters:,} parameters")
            if record is not None and not flags.ignore_data_change:
                advice = "; --ignore_data_change to go on all the same"
                refuse_differences(folder, record.get("data") or {}, job.data, advice)
        refuse_disagreement(run_record(flags, job))
        mesh = make_mesh(fsdp=flags.fsdp, tensor=flags.tensor)
        trainer = Trainer(flags, job.task(mesh), mesh)
        if flags.dry_run:
            print(trainer.budget())
            return
        with together(), naming(folder):
            if jax.process_index() == 0:
                record_start(flags, stage, folder, job, record)
        describe(job, trainer.attention())
        checkpoints = Checkpoints(folder, keep=flags.keep)
        state = trainer.start() if begun is None else trainer.resume(checkpoints, begun.step)
        state, progress = trainer.fit(folder, state, begun or Progress(0), checkpoints)
        with naming(folder):
            if progress.step == flags.max_iters:
                job.show(state.whole)
            elif jax.process_index() == 0:
                print(f"curve: {plot(folder)}")


@contextmanager
def use_folder(flags: RunConfig, folder: Path) -> Iterator[Progress | None]:
    """Hold the run's folder, and give what it has of a run to resume; a dry run leaves the folder alone."""
    begun, new = None, flags.init_from not in ("resume", "auto")
    with ExitStack() as held:
        with together():
            if jax.process_index() == 0:
                if not flags.dry_run:
                    held.enter_context(hold(folder, new=new and not flags.overwrite))
                begun = None if new else find_begun(flags, folder)
                if not new and not flags.dry_run:
                    sweep(folder, 0 if begun is None else begun.step)
        begun = gather(None if begun is None else dataclasses.asdict(begun))[0]
        yield None if begun is None else Progress(**begun)


def find_begun(flags: RunConfig, folder: Path) -> Progress | None:
    """Return the newest good checkpoint's progress; None if the run is to begin.

    Raises:
        UsageError: there is none to resume, or all are damaged.
    """
    begun = latest(folder)
    if begun is None:
        if steps(folder):
            raise UsageError(f"--init_from {flags.init_from}: every checkpoint in {folder} is damaged")
        if flags.init_from == "resume":
            raise UsageError(f"--init_from resume: {folder} holds no checkpoint; begin anew with --overwrite or auto")
        print(f"note: {folder} holds no checkpoint yet; starting from {flags.source}")
    return begun


def read_begun(flags: RunConfig, folder: Path, stage: str) -> Record:
    """Return the record of the run that goes on.

    Raises:
        UsageError: see `read_record`; or an entry is missing that such a run has.
    """
    record = read_record(folder, ignore_change=flags.ignore_config_change)
    for name in ("new",) if stage == "pretrain" else ("begun_from", "base", "lora"):
        if name not in record:
            raise UsageError(f"{folder / 'config.json'}: {name} is missing, which the record of a run of {stage} has")
    return record


def is_shown(folder: Path, step: int) -> bool:
    """Return whether what came of a run was shown, too, and not only saved: the curve is what is written last."""
    curve, manifest = folder / "curve.png", folder / "checkpoints" / str(step) / "manifest.json"
    return curve.exists() and curve.stat().st_mtime >= manifest.stat().st_mtime


def record_start(flags: RunConfig, stage: str, folder: Path, job: Job, record: Record | None) -> None:
    """Write what the run is defined by, so that nothing else is needed to resume it or to generate from it."""
    if record is None:
        if holds_run(folder):  # --overwrite, and nothing was wrong
            move_aside(folder)
        job.tokenizer.save(folder)
        job.files(folder)
    run, flags_now = None if record is None else record.get("run"), dataclasses.asdict(flags)
    write_record(folder, job.config, run=run, stage=stage, flags=flags_now, data=dict(job.data), **job.record)


def run_record(flags: RunConfig, job: Job) -> dict[str, Any]:
    """Return all that must be the same in every process of a run; paths may differ from host to host."""
    own = {"out_dir", "cache_dir", "device", "dataset", "val_dataset", "base", "template", "reward_model",
           "reward_function"}  # fmt: skip
    record = {**dataclasses.asdict(flags), **dataclasses.asdict(job.config), **versions()}
    hashes = {f"the hash of {name}": value for name, value in job.data.items()}
    return {**{name: value for name, value in record.items() if name not in own}, **hashes}


def describe(job: Job, attention: str) -> None:
    """Say what is about to be trained on what, and by which attention."""
    config = job.config
    print(
        f"model: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.n_positions};"
    )
    print(f"       {count(config)['total']:,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind}")
    for line in (attention, *job.about):
        print(line)


def next_command(name: str, *words: object) -> str:
    """Return how to call one of the commands, in the way in which this one was called."""
    script = Path(sys.argv[0])
    command = [f"jaxgpt-{name.partition('_')[0]}"]
    if script.suffix == ".py":
        command = [os.path.relpath(sys.executable), os.path.relpath(script.with_name(f"{name}.py"))]
    return shlex.join([*command, *map(str, words)])


def refuse_differences(where: object, before: Any, now: Any, advice: str = "") -> None:
    """Raise a UsageError that lists the fields in which two records differ."""
    before, now = (x if isinstance(x, dict) else dataclasses.asdict(x) for x in (before, now))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = [f"{name} is {now.get(name)}, was {before.get(name)}" for name in names]
    if differences:
        raise UsageError(f"{where} does not fit what is asked: {'; '.join(differences)}{advice}")
