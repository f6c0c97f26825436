"""Going on with a run: its flags, its newest good checkpoint, and what may not have changed since it began."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.flags import flags_where
from jaxgpt.runs.folder import hold, holds_nanogpts, read_record
from jaxgpt.runs.manifest import Progress, latest, steps
from jaxgpt.train.config import RunConfig


def resumed_flags(stage: str, flags: type[RunConfig], given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the flags of the run that a command line resumes, and where they stand; none if it resumes none.

    Raises:
        UsageError: there is no such run, or it is one of another stage.
    """
    mode = given.get("init_from", flags.init_from)
    folder = Path(given.get("out_dir", flags.out_dir))
    if mode not in ("resume", "auto") or (mode == "auto" and not (folder / "config.json").exists()):
        return "", {}
    if not (folder / "config.json").exists():
        raise UsageError(f"--init_from resume: --out_dir {folder} holds no run; begin one with scratch or auto")
    record = read_record(folder, ignore_change=given.get("ignore_config_change", flags.ignore_config_change))
    begun, begun_as = record.get("flags"), record.get("stage")
    if not isinstance(begun, dict):
        raise UsageError(f"--out_dir {folder} holds only weights; start from them with --init_from {folder}")
    if begun_as != stage:
        raise UsageError(f"--out_dir {folder} holds a run of {begun_as}, not of {stage}; choose another folder")
    return str(folder / "config.json"), _kept(flags, begun)


def _kept(flags: RunConfig | type[RunConfig], begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of the flags that a run began with, those that it keeps where a command line leaves them out."""
    of_the_command = flags_where(flags, "on_resume", "of the command")
    return {name: value for name, value in begun.items() if name not in of_the_command}


@contextmanager
def use_folder(flags: RunConfig, folder: Path) -> Iterator[Progress | None]:
    """Hold the run's folder, and give how far the run in it has come, if it is to go on, unless nothing is written."""
    import jax

    from jaxgpt.hosts import gather, together
    from jaxgpt.runs.checkpoint import sweep

    progress, new = None, flags.init_from not in ("resume", "auto")
    with ExitStack() as held:
        with together():
            if jax.process_index() == 0:
                if flags.writes:
                    held.enter_context(hold(folder, new=(new or holds_nanogpts(folder)) and not flags.overwrite))
                progress = None if new else newest_progress(flags, folder)
                if not new and flags.writes:
                    sweep(folder, 0 if progress is None else progress.step)
        if flags.writes:
            refuse_apart(folder)
        progress = gather(None if progress is None else dataclasses.asdict(progress))[0]
        yield None if progress is None else Progress(**progress)


def refuse_apart(folder: Path) -> None:
    """Raise a UsageError unless all processes see what the first one writes into the run's folder.

    Each writes its parts of a checkpoint, and the first waits for all of them before it counts.
    """
    import jax

    from jaxgpt.hosts import gather, together

    if jax.process_count() == 1:
        return
    # A name that nobody has asked for: a network's file system remembers for a while what was not there.
    token = folder / gather(f"shared-{secrets.token_hex(8)}")[0]
    with together():
        if jax.process_index() == 0:
            token.touch()
    blind = [str(process) for process, sees in enumerate(gather(token.exists())) if not sees]
    if jax.process_index() == 0:
        token.unlink()
    if blind:
        raise UsageError(
            f"--out_dir {folder}: what process 0 of this run writes there is not seen by {', '.join(blind)}; it must "
            "be a folder on a disk that all processes share"
        )


def newest_progress(flags: RunConfig, folder: Path) -> Progress | None:
    """Return the newest good checkpoint's progress; None if the run is to begin.

    Raises:
        UsageError: there is none to resume, or all are damaged.
    """
    progress = latest(folder)
    if progress is None:
        if steps(folder):
            raise UsageError(f"--init_from {flags.init_from}: every checkpoint in {folder} is damaged")
        if flags.init_from == "resume":
            raise UsageError(f"--init_from resume: {folder} holds no checkpoint; begin anew with --overwrite or auto")
        print(f"note: {folder} holds no checkpoint yet; starting from {flags.source}")
    return progress


def is_shown(folder: Path, step: int) -> bool:
    """Return whether a finished run was shown, too, and not only saved: the curve is what is written last."""
    curve, manifest = folder / "curve.png", folder / "checkpoints" / str(step) / "manifest.json"
    return curve.exists() and curve.stat().st_mtime >= manifest.stat().st_mtime


def refuse_changed_flags(flags: RunConfig, folder: Path, record: Mapping[str, Any]) -> None:
    """Raise a UsageError that lists the flags which may not change when a run goes on, and did; note the others."""
    # A record may be older than a flag.
    begun = {
        name: record["flags"][name] for name in flags_where(flags, "on_resume", "fixed") if name in record["flags"]
    }
    refuse_differences(folder, begun, {name: getattr(flags, name) for name in begun})
    refuse_differences(folder, record["model"], flags.model(record["model"]))
    for name, before in _kept(flags, record["flags"]).items():
        now = getattr(flags, name, before)
        if (list(now) if isinstance(now, tuple) else now) != before:  # as JSON keeps it
            print(f"note: {name} was {before} when this run began, and is {now} now")


def refuse_differences(where: object, before: Any, now: Any, advice: str = "") -> None:
    """Raise a UsageError that lists the fields in which two records differ."""
    before, now = (x if isinstance(x, dict) else dataclasses.asdict(x) for x in (before, now))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = [f"{name} is {now.get(name)}, was {before.get(name)}" for name in names]
    if differences:
        raise UsageError(f"{where} does not fit what is asked: {'; '.join(differences)}{advice}")
