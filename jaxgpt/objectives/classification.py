"""Classification: the objective, and at the end each text's label and a table of the mistakes."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import numpy as np
import optax
from jax import Array
from jaxtyping import Int

from jaxgpt.chat.examples import Labelled
from jaxgpt.errors import UsageError
from jaxgpt.hosts import fetch
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.objectives.outputs import last_scores
from jaxgpt.parallel import on_mesh_of


def classify(model: GPT) -> Objective:
    """Cross-entropy of the label given the hidden state of a text's last token (Radford et al. 2018, section 3.2).

    Metrics: accuracy.

    Raises:
        UsageError: the model has no scores, or only one.
    """
    labels = model.config.labels
    if labels is None or len(labels) < 2:
        raise UsageError(f"labels are {labels!r}; to classify takes two or more")
    return partial(_labels, model)


def _labels(model: GPT, params: Params, batch: Labelled, key: Array | None) -> Sums:
    scores = last_scores(model, params, batch.tokens, batch.last, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
    right, weight = scores.argmax(-1) == batch.labels, batch.weights.sum()
    return Sums((losses * batch.weights).sum(), weight, {"accuracy": ((right * batch.weights).sum(), weight)})


def predict(model: GPT, params: Params, batches: Iterable[Labelled]) -> Int[np.ndarray, " M"]:
    """Return the number of the best label of each text, one batch after another; texts of weight 0 are left out."""
    best = jax.jit(lambda params, batch: last_scores(model, params, batch.tokens, batch.last).argmax(-1))
    with on_mesh_of(params):
        return np.concatenate([fetch(best(params, batch))[np.asarray(batch.weights) > 0] for batch in batches])


def confusion(
    labels: Sequence[str], truth: Sequence[int] | Int[np.ndarray, " M"], predicted: Int[np.ndarray, " M"]
) -> str:
    """Return a table of how many texts of each label were taken for which, and how often that was right.

    A row is a label's texts: what they were taken for, their number and share of all, precision (of what was taken for
    this label, how much is it) and recall (of what is this label, how much was taken for it).

    Args:
        labels: names.
        truth: number of each text's label.
        predicted: the same as the model sees it.
    """
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (np.asarray(truth), predicted), 1)
    return confusion_table(labels, counts)


def confusion_table(labels: Sequence[str], counts: Int[np.ndarray, "N N"]) -> str:
    """Return the table of `confusion` from the number of each label's texts (rows) taken for which (columns)."""
    right, total = int(counts.trace()), int(counts.sum())
    rows = [["", *(f"as {label}" for label in labels), "texts", "share", "precision", "recall"]]
    for i, label in enumerate(labels):
        texts, taken = int(counts[i].sum()), int(counts[:, i].sum())
        parts = [(texts, total), (int(counts[i, i]), taken), (int(counts[i, i]), texts)]
        rows.append([label, *map(str, counts[i]), str(texts), *(_percent(*part) for part in parts)])
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]
    return "\n".join([*lines, f"accuracy {_percent(right, total)}: {right} of {total} texts"])


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
