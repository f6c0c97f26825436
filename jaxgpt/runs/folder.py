"""A run's folder: its lock, its record, and where everything in it stands.

config.json  metrics.jsonl  curve.png  tokenizer files  samples/  tensorboard/  wandb_id.txt  checkpoints/STEP/
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from jaxgpt.errors import UsageError, naming
from jaxgpt.files import digest, free_name, read_json, regular, write_json
from jaxgpt.model.config import GPTConfig
from jaxgpt.signals import tidied

FORMAT = 1
"""Of config.json and of the checkpoints' manifests."""
FROM_TOKENIZER = "tokenizer_vocab_size"
"""The one field of a GPTConfig that is not written down: whoever reads a model finds it in its tokenizer's files."""
LOCK = "lock"
BASE = "base"
"""In a run's folder, the model that it began with, where checkpoints don't have all of it."""
NANOGPT = "ckpt.pt"
RUN = ("checkpoints", "config.json", NANOGPT)
ENTRIES: dict[str, Any] = {
    "stage": str,
    "flags": dict,
    "data": dict,
    "new": bool,
    "begun_from": str,
    "base": bool | str,  # adapters that were merged name the model that they belong to
    "lora": dict | None,
    "run": str,
}
"""The types of what config.json holds beside the model."""


@contextlib.contextmanager
def hold(path: Path, *, new: bool) -> Iterator[None]:
    """Make the folder, or make sure that it may be used, before anything is computed, and hold it for this process.

    Args:
        path: the run's folder.
        new: it must not hold a run yet.

    Raises:
        UsageError: it is a file, can't be written to, is held by another process, or holds another run.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out_dir {path}: {error.strerror}; it must be a folder that can be written to") from None
    with lock(path):
        with tidied(partial(leave_nothing, path, made, os.stat(path))):
            if new and holds_run(path):
                if holds_nanogpts(path):
                    raise UsageError(
                        f"--out_dir {path} holds nanoGPT's {NANOGPT}, which --init_from {path / NANOGPT} "
                        "--allow_pickle begins with; choose another folder, or --overwrite moves it aside"
                    )
                raise UsageError(
                    f"--out_dir {path} holds a run; continue it with --init_from resume, choose another folder, "
                    "or begin anew with --overwrite, which moves it aside"
                )
            yield


def leave_nothing(path: Path, made: list[Path], held: os.stat_result) -> None:
    """Remove what a run that did not begin has put into its held folder, and those folders that were made for it."""
    with contextlib.suppress(OSError):  # what ended the run is the error to report
        if not os.path.samestat(os.stat(path), held) or holds_run(path):
            return
        if path in made:
            shutil.rmtree(path)
        else:
            (path / LOCK).unlink(missing_ok=True)
        for folder in made[1:]:
            folder.rmdir()


def holds_run(path: Path) -> bool:
    """Return whether there is a run in a folder."""
    return any((path / name).exists() for name in RUN)


def holds_nanogpts(path: Path) -> bool:
    """Return whether it is nanoGPT's, whose checkpoint is read with the tokenizer that lies beside it."""
    return [name for name in RUN if (path / name).exists()] == [NANOGPT]


def move_aside(path: Path) -> None:
    """Move what a held folder has, but for its lock, to `path`.old-1 or the next free number.

    What makes it a run goes last, so this can be cut short.
    """
    aside = free_name(path)
    try:
        aside.mkdir()
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name in RUN):
            if entry.name != LOCK:
                entry.rename(aside / entry.name)
    except OSError as error:
        raise UsageError(f"--out_dir {path} can't be moved aside to {aside}: {error.strerror}") from None
    print(f"note: the run that {path} held is now in {aside}")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the folder for this process.

    The locks are the operating system's, so they end with the process, however that ends. The folder's own can't be
    deleted, as the file's can; but network file systems lock files only, and so does Windows, where a file that is
    open can't be deleted. The file also says who holds it.

    Raises:
        UsageError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        if (path / LOCK).exists():
            regular(path / LOCK)
        failed = []
        if os.name != "nt":  # which opens no folders
            folder = os.open(path, os.O_RDONLY)
            stack.callback(os.close, folder)
            failed.append(_lock(path, folder))
        file = stack.enter_context(open(path / LOCK, "a+", encoding="utf-8"))
        failed.append(_lock(path, file.fileno()))
        if all(failed):
            print(f"warning: {path} can't be locked ({failed[-1]}); no other process must use it", file=sys.stderr)
        file.seek(0)
        if left := file.read().strip():
            print(f"note: {left} ended without leaving {path}; going on from its last checkpoint")
        with naming(path / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        stack.enter_context(tidied(partial(file.truncate, 0)))
        yield


def _lock(path: Path, descriptor: int) -> str | None:
    """Lock an open file or folder; return why its file system can't.

    Raises:
        UsageError: another process holds the run's folder, `path`.
    """
    try:
        if lock_descriptor(descriptor, blocking=False):
            return None
    except OSError as error:
        return error.strerror
    who = ""
    with contextlib.suppress(OSError):  # it was deleted, or can't be read while it is locked, as on Windows
        who = (path / LOCK).read_text(encoding="utf-8").strip()
    raise UsageError(f"--out_dir {path} is in use by {who or 'another process'}")


def write_record(path: Path, config: GPTConfig, *, run: str | None = None, **more: Any) -> None:
    """Write config.json: the model, the versions that made it, and whatever else the run is defined by.

    Args:
        path: the run's folder.
        config: the model's.
        run: the run's name in its checkpoints; None for a new run's, the hash of this first record.
        more: further entries.
    """
    model = {name: value for name, value in dataclasses.asdict(config).items() if name != FROM_TOKENIZER}
    record = {"format": FORMAT, "model": model, **more, "versions": versions()}
    record["run"] = run or digest(record)
    write_json(path / "config.json", {**record, "sha256": digest(record)})


def read_record(path: Path, *, ignore_change: bool = False) -> dict[str, Any]:
    """Read config.json, with "model" as a GPTConfig.

    Args:
        path: the run's folder.
        ignore_change: also read one that was changed since it was written, or is another run's.

    Raises:
        UsageError: it is missing, broken, changed, or of a format that this version does not know.
    """
    file = path / "config.json"
    record = read_json(file)
    changed = record.pop("sha256", None) != digest(record)
    if "format" not in record:
        raise UsageError(f"{file} is not the record of a run of this project: it names no format")
    if record["format"] != FORMAT:
        raise UsageError(f"{file} has format {record['format']!r}; this version reads format {FORMAT}")
    if not ignore_change:
        advice = "put back what it was, or --ignore_config_change takes it as it is"
        if changed and "run" in record:  # earlier versions wrote neither
            raise UsageError(
                f"{file} has changed since it was written: its hash is not the one that it names; {advice}"
            )
        for manifest in path.glob("checkpoints/*/manifest.json"):
            made_by, step = named_run(manifest), manifest.parent.name
            if step.isdecimal() and made_by not in (None, record.get("run")):
                raise UsageError(f"{file} is not the record of the run that made checkpoint {step} beside it; {advice}")
    check_entries(file, record)
    record["model"] = read_model(file, record.get("model"))
    return record


def named_run(file: Path) -> str | None:
    """Return the run that a record or a manifest names; None if it names none.

    One that can't be read is reported where it is to be used.
    """
    try:
        run = read_json(file).get("run")
    except UsageError:
        return None
    return run if isinstance(run, str) else None


def check_entries(file: Path, record: Mapping[str, Any]) -> None:
    """Raise a UsageError unless the entries of a record, but for the model, are of their types."""
    for name in ENTRIES.keys() & record.keys():
        if not isinstance(record[name], ENTRIES[name]):
            raise UsageError(f"{file}: {name} is a {type(record[name]).__name__}, which it is in no run's record")


def read_model(file: Path, fields: object) -> GPTConfig:
    """Build the model's config from a record's table.

    Raises:
        UsageError: the fields are not exactly those of a GPTConfig, or a value is bad.
    """
    names = {field.name for field in dataclasses.fields(GPTConfig)} - {FROM_TOKENIZER}
    if not isinstance(fields, Mapping) or set(fields) != names:
        wrong = sorted(names ^ set(fields)) if isinstance(fields, Mapping) else "a table is missing"
        raise UsageError(f"{file}: model: {wrong}; it must have exactly the fields of GPTConfig")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    try:
        return GPTConfig(**values)
    except UsageError as error:
        raise UsageError(f"{file}: model: {error}") from None


def versions() -> dict[str, str]:
    """Return the versions that a result can depend on."""
    packages = ("jaxgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a source tree
            found[package] = importlib.metadata.version(package)
    return found
