"""Direct preference optimisation: pairs of answers, and how likely the model found them before → a policy."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxgpt.cli.pairs import PairData, open_pairs
from jaxgpt.cli.run import Job, Record, next_command
from jaxgpt.cli.stage import SHOWN, Start, job, model_of, open_start, show_answers, show_curve, task, without_labels
from jaxgpt.errors import UsageError
from jaxgpt.files import regular
from jaxgpt.model.layers import GPT
from jaxgpt.model.lora import without_adapters
from jaxgpt.train.objectives import Objective
from jaxgpt.train.preferences import dpo, reference_log_probs, with_reference
from jaxgpt.train.stages import DPOConfig
from jaxgpt.train.task import Task

REFERENCE = "reference.npz"


def prepare(flags: DPOConfig, folder: Path, record: Record | None) -> Job:
    """Open the model and the pairs."""
    start = without_labels(open_start(flags, folder, record, fixed=("reference",)))
    pairs = open_pairs(flags, start)

    @cache
    def reference() -> Mapping[str, np.ndarray]:
        if flags.reference == "live":
            return {}
        if flags.dry_run:  # only shapes matter, and there is no run's folder
            return {name: np.zeros((len(part), 2), np.float32) for name, part in parts(pairs).items()}
        return read_reference(folder / REFERENCE, pairs)

    def objective(model: GPT) -> Objective:
        return dpo(
            model,
            loss=flags.loss,
            beta=flags.beta,
            label_smoothing=flags.label_smoothing,
            length_normalised=flags.length_normalised,
        )

    def make_task(mesh: Mesh) -> Task:
        whole = task(flags, start, pairs.examples(reference), objective, mesh)
        if flags.reference == "precomputed":
            return whole
        # Outside of what merges the adapters, which the reference goes without.
        model = model_of(flags, start.config)
        return replace(whole, objective=with_reference(whole.objective, model, without_adapters))

    def show(params: Any) -> None:
        show_answers(flags, folder, start, pairs.prompts(SHOWN), params)
        show_curve(folder, next_command("generate", "--compare", start.name, folder, "--prompts", "FILE"))

    return job(
        flags,
        start,
        about=pairs.about(flags),
        task=make_task,
        show=show,
        files=lambda folder: write_reference(flags, folder / REFERENCE, start, pairs),
    )


def parts(pairs: PairData) -> dict[str, list[Any]]:
    """Return the pairs by the names that they have in the file."""
    return {"train": pairs.train, "val": pairs.val}


def fingerprint(pairs: PairData) -> str:
    """Return a hash of the pairs' tokens."""
    return hashlib.sha256(repr(parts(pairs)).encode()).hexdigest()


def write_reference(flags: DPOConfig, file: Path, start: Start, pairs: PairData) -> None:
    """Write down how likely the model that the run begins with finds each answer: once, for the run and its resumes."""
    if flags.reference == "live":
        return
    model, examples = model_of(flags, start.config), pairs.examples()
    train, val = (
        reference_log_probs(model, start.params, examples.in_order(i, flags.batch_size))[:size]
        for i, size in enumerate(examples.sizes)
    )
    unfinished = file.with_suffix(".part.npz")
    np.savez(unfinished, train=train, val=val, pairs=fingerprint(pairs))
    unfinished.replace(file)


def read_reference(file: Path, pairs: PairData) -> dict[str, np.ndarray]:
    """Read what `write_reference` wrote.

    Raises:
        UsageError: it is not there, damaged, or of other pairs.
    """
    try:
        with np.load(regular(file), allow_pickle=False) as found:
            reference, of_pairs = {name: found[name] for name in parts(pairs)}, str(found["pairs"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file}: can't be read: {error}; a run of dpo needs it to go on") from None
    if of_pairs != fingerprint(pairs):
        raise UsageError(f"{file}: is of other pairs than those of this run; begin a new run with them")
    for name, part in parts(pairs).items():
        if reference[name].shape != (len(part), 2) or not np.isfinite(reference[name]).all():
            raise UsageError(f"{file}: {name} must have two finite numbers for each of {len(part)} pairs")
    return reference
