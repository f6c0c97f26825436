"""Manifests: what a checkpoint is made of, by the hash of each file, and how far the run had come.

A folder without a manifest, whatever its name, is not a checkpoint; one that does not match it is damaged.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jaxgpt.errors import UsageError
from jaxgpt.files import digest, read_json, sha256, write_json
from jaxgpt.runs.folder import FORMAT

Which = int | Literal["best", "last"]
"""A checkpoint of a run: by its step, the best by validation loss, or the newest."""
WEIGHTS, ITEMS = ("params",), ("params", "rest")
"""What of a checkpoint's items holds the weights, and all of them."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""What orbax appends to the name of a folder that it has not finished."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run beside its state, kept in the manifest.

    Attributes:
        step: updates done.
        best_step: the evaluated step with the lowest validation loss so far; None before the first evaluation.
        best_loss: that loss.
        run: the run's name, as its record has it; None in what earlier versions wrote.
    """

    step: int
    best_step: int | None = None
    best_loss: float | None = None
    run: str | None = field(default=None, compare=False)

    def evaluated(self, loss: float) -> Progress:
        """Return the progress after an evaluation at this step; NaN is never the best."""
        if loss < (float("inf") if self.best_loss is None else self.best_loss):
            return replace(self, best_step=self.step, best_loss=loss)
        return self


def steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints in a run's folder; what has no manifest is none."""
    found = (step_of(manifest.parent) for manifest in run.glob("checkpoints/*/manifest.json"))
    return [step for step in found if step is not None]


def latest(run: Path, items: Collection[str] = ITEMS) -> Progress | None:
    """Return the newest undamaged checkpoint's progress, saying which ones had to be passed over; None if none is.

    Args:
        run: the run's folder.
        items: see `read_manifest`.
    """
    for step in sorted(steps(run), reverse=True):
        if progress := undamaged(run / "checkpoints" / str(step), items):
            return progress
    return None


def undamaged(
    folder: Path, items: Collection[str], instead: str = "falling back to the checkpoint before it"
) -> Progress | None:
    """Return what `read_manifest` does; or None where it raises, with a warning that says what is done instead."""
    try:
        return read_manifest(folder, items)
    except UsageError as error:
        print(f"warning: {error}; {instead}", file=sys.stderr)
        return None


def write_manifest(folder: Path, progress: Progress) -> None:
    """Write down the hash of every file of a checkpoint."""
    # Orbax writes the time of its commit into this one afterwards; nothing is read from it.
    later = folder / "_CHECKPOINT_METADATA"
    found = sorted(file for file in folder.rglob("*") if file.is_file() and file != later)
    files = {str(file.relative_to(folder)): sha256(file) for file in found}
    manifest = {"format": FORMAT, **dataclasses.asdict(progress), "files": files}
    write_json(folder / "manifest.json", {**manifest, "sha256": digest(manifest)})


def read_manifest(folder: Path, items: Collection[str] = ITEMS) -> Progress:
    """Verify a checkpoint's manifest, and against it the files of those items that are to be read.

    Raises:
        UsageError: it is missing, of an unknown format, or a file is missing or has changed.
    """
    damaged = f"checkpoint {folder} is damaged"
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["format"] != FORMAT:
            raise UsageError(f"{folder} has format {manifest['format']!r}; this version reads format {FORMAT}")
        whole = manifest.pop("sha256") == digest(manifest)
        files = dict(manifest["files"])
        names = [field.name for field in dataclasses.fields(Progress)]
        progress = Progress(**{name: manifest[name] for name in names if name in manifest})
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{folder} is no checkpoint: manifest.json: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{damaged}: manifest.json can't be read") from None
    if not whole or str(progress.step) not in (folder.name, folder.name.removesuffix(TEMPORARY)):
        raise UsageError(f"{damaged}: manifest.json has changed, or is another checkpoint's")
    for name, expected in files.items():
        if name.partition("/")[0] not in items:
            continue
        file, inside = folder / name, ".." not in Path(name).parts
        try:
            if not inside or not file.is_file() or sha256(file) != expected:
                raise UsageError(f"{damaged}: {name} is missing or has changed")
        except OSError as error:
            raise UsageError(f"{damaged}: {name}: {error.strerror}") from None
    return progress


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint's folder is named after; None if its name is none that we give."""
    return int(path.name) if path.name.isdecimal() and str(int(path.name)) == path.name else None
