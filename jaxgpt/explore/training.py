"""The data of the views of a run: its weights through training, its curves, and what it has cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.files import read_json, typed
from jaxgpt.inspect.power_law import fit_power_law
from jaxgpt.model.atlas import count
from jaxgpt.model.config import VALUE, GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.resize import without_values
from jaxgpt.runs.manifest import WEIGHTS, steps, undamaged
from jaxgpt.runs.weights import load_params
from jaxgpt.train.metrics import read_rows
from jaxgpt.train.state import init_params

MOST_STEPS, MOST_ROWS, MOST_SAMPLES = 6, 300, 6
# What a row has that no curve of learning is.
_NO_CURVE = {"step", "split", "loss", "train_loss", "tokens_per_s", "mfu"}
_LOSSES = {
    "pretrain": "The loss is the mean surprise at each next token, in nats.",
    "sft": "The loss is the mean surprise at the assistant's tokens, in nats.",
    "classify": "The loss is the surprise at the right label, in nats: ln of their number for who only guesses.",
    "reward": "The loss is −log σ(chosen − rejected): 0.693 for who only guesses.",
    "dpo": "The loss is −log σ of how much more than its reference the model prefers what was chosen: 0.693 at first.",
    "dpo hinge": "The loss is max(0, 1 − β δ), δ being how much more than its reference the model prefers what was "
    "chosen: 1 at first.",
    "dpo ipo": "The loss is (δ − 1/(2 β))², δ being how much more than its reference the model prefers what was chosen "
    "per token: 1/(4 β²) at first.",
    "ppo": "The loss in training is the clipped objective's and has no meaning by itself; in validation it is what "
    "answers are worth, negated. See score and KL divergence.",
}


def history(run: Path, shown: int, record: Mapping[str, Any], config: GPTConfig) -> Iterator[tuple[int, Any]]:
    """Yield a run's parameters at some of the steps that are known, the first and that of the page among them.

    Args:
        run: the folder.
        shown: the step whose parameters the page shows.
        record: what the run's config.json says.
        config: the model's.
    """
    there = sorted(step for step in steps(run) if step != shown)
    seed: Any = (record.get("flags") or {}).get("seed")
    begins = bool(record.get("new")) and isinstance(seed, int) and 0 not in {shown, *there}
    places = np.unique(np.linspace(0, len(there) - 1, min(len(there), MOST_STEPS - 1 - begins)).astype(int))
    if begins:
        yield 0, init_params(GPT(config), seed=seed)
    for step in sorted({shown, *(there[i] for i in places)}):
        if undamaged(run / "checkpoints" / str(step), WEIGHTS, "left out of the page"):
            yield step, without_values(*load_params(run, step, ignore_config_change=True))[1]


def notes(record: Mapping[str, Any], config: GPTConfig) -> list[str]:
    """Return what a page can't show, or shows otherwise than the run had it, or says of most models but not of this."""
    found = []
    if config.norm_position == "post":
        found.append("This model normalises the stream behind each addition: view 5 holds what comes of that.")
    if lora := record.get("lora"):
        found.append(f"The run trained adapters of rank {lora['rank']} (LoRA); the page shows weights with them added.")
    if record.get("stage") in ("classify", "reward"):
        what = "labels" if record["stage"] == "classify" else "scores"
        found.append(
            f"The run trained {what}, which stand in view 6; what is said of next tokens comes from the head that "
            "the model had before, which this run did not train."
        )
    if "model" in record and record["model"].labels == VALUE:
        found.append("The value head of PPO is not shown: it is no part of the model that speaks.")
    return found


def training_data(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's metrics, of at most a few hundred rows a curve, and its last samples."""
    rows = read_rows(run / "metrics.jsonl")
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for name in ("loss", *sorted({name for row in rows for name in row} - _NO_CURVE)):
        for split in ("train", "val"):
            points = [[row["step"], row[name]] for row in rows if row["split"] == split and row.get(name) is not None]
            if any(y != 0 for _, y in points):
                kept = {*range(0, len(points), max(len(points) // MOST_ROWS, 1)), len(points) - 1}
                curves.setdefault(name, {})[split] = [points[i] for i in sorted(kept)]
    samples = sorted((run / "samples").glob("*.txt"), key=lambda file: file.stat().st_mtime)[-MOST_SAMPLES:]
    stage, loss = record.get("stage"), (record.get("flags") or {}).get("loss")
    return {
        "stage": stage,
        "about": _LOSSES.get(f"{stage} {loss}", _LOSSES.get(stage or "")),
        "new": bool(record.get("new")),
        "curves": curves,
        "samples": [[file.name, file.read_text(encoding="utf-8", errors="replace")[:800]] for file in samples],
    }


Rung = tuple[int, int, float]
"""A run's parameters N, the tokens D that it has read, and its loss."""


def read_ladder(file: Path) -> list[Rung]:
    """Return the runs of a file as `python -m recipes.scaling` writes it.

    Raises:
        UsageError: it can't be read, or isn't such a file.
    """
    runs = typed(read_json(file).get("runs"), list, "runs", file)
    names = ("parameters", "tokens", "loss")
    for run in runs:
        found = [run.get(name) if isinstance(run, dict) else None for name in names]
        if not all(isinstance(x, int | float) and 0 < x < math.inf for x in found):
            raise UsageError(f"{file}: a run is {str(run)[:80]}; it must have {', '.join(names)}, positive numbers")
    return [(run["parameters"], run["tokens"], run["loss"]) for run in runs]


def scaling_data(
    run: Path | None, record: Mapping[str, Any], config: GPTConfig, ladder: Sequence[Rung] = ()
) -> dict[str, Any]:
    """Return the model's parameters N; of a run that trained them from the first, the tokens D that it has read and its
    loss; and the ladder with its law."""
    data: dict[str, Any] = {"parameters": count(config)["total"]}
    flags: Mapping[str, Any] = record.get("flags") or {}
    sizes: Any = [flags.get(name) for name in ("batch_size", "gradient_accumulation_steps")]
    if run is not None and record.get("new") and all(isinstance(size, int) for size in sizes):
        rows = read_rows(run / "metrics.jsonl")
        done = max((row["step"] for row in rows), default=0)
        if done:
            data["tokens"] = done * sizes[0] * sizes[1] * (flags.get("block_size") or config.n_positions)
            last = [row["loss"] for row in rows if row["split"] == "val" and row["step"] == done]
            data |= {"loss": last[-1]} if last else {}
    if ladder:
        compute, losses = [6 * n * d for n, d, _ in ladder], [loss for _, _, loss in ladder]
        law = asdict(fit_power_law(compute, losses)) if len(set(compute)) > 2 else None
        data["ladder"] = {"runs": ladder, "law": law}
    return data
