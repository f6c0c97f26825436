"""Figures of what a model predicts, and of its parameters; see `jaxgpt.inspect.figures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.inspect.drawing import AMOUNTS, BLUE, NAMED, ORANGE, name_places, own_places, printable
from jaxgpt.inspect.predictions import next_token_table
from jaxgpt.inspect.record import Inspection
from jaxgpt.model.atlas import count as count_parameters
from jaxgpt.model.config import GPTConfig

Values = Array | np.ndarray


def plot_logit_lens(
    lens: Inspection | Float[Values, "M T V"],
    *,
    row: int = 0,
    labels: Sequence[str] | None = None,
    name: Callable[[int], str] = str,
) -> Figure:
    """Draw the likeliest next token at each depth and place, coloured by its probability (the logit lens).

    Args:
        lens: logits before each block and behind the last; or a record.
        row: of a record.
        labels: the text at each place.
        name: of an id.
    """
    if isinstance(lens, Inspection):
        if lens.lens is None:
            raise UsageError("lens: the record has none; call inspect with lens=True")
        lens = lens.lens[:, row, own_places(lens, row)[0]]
    probabilities = _softmax(lens)
    return _cells(probabilities.max(-1), probabilities.argmax(-1), labels, name, ylabel="blocks passed")


def plot_predictions(
    logits: Inspection | Float[Values, "T V"],
    count: int = 5,
    *,
    row: int = 0,
    labels: Sequence[str] | None = None,
    name: Callable[[int], str] = str,
) -> Figure:
    """Draw the likeliest next tokens after each place, one below the other, coloured by their probability.

    Args:
        logits: of each place; or a record.
        count: tokens a place.
        row: of a record.
        labels: the text at each place.
        name: of an id.
    """
    if isinstance(logits, Inspection):
        logits = logits.logits[row, own_places(logits, row)[0]]
    probabilities = _softmax(logits)
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, : checks.whole("count", count, 1)]
    return _cells(np.take_along_axis(probabilities, best, -1).T, best.T, labels, name, ylabel="rank")


def plot_next_token(
    logits: Float[Values, " V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    *,
    count: int = 15,
    name: Callable[[int], str] = str,
) -> Figure:
    """Draw the likeliest next tokens' probabilities before and after sampling's settings; see `next_token_table`."""
    rows = next_token_table(logits, temperature, top_k, top_p, min_p, count=count)
    figure = Figure(figsize=(7, 0.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [row.probability for row in rows], 0.4, color=BLUE, label="the model's")
    axes.barh(places + 0.2, [row.sampled for row in rows], 0.4, color=ORANGE, label="as sampled")
    axes.set_yticks(places, [printable(name(row.token)) for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="probability")
    axes.legend()
    return figure


def plot_parameters(config: GPTConfig) -> Figure:
    """Draw how many parameters each part of a model has, and its share."""
    parts = count_parameters(config)
    total = parts.pop("total")
    figure = Figure(figsize=(7, 1 + 0.5 * len(parts)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(parts), list(parts.values()), color=BLUE)
    axes.bar_label(bars, [f"{n:,} ({n / total:.1%})" for n in parts.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set(xlabel="parameters", title=f"{total:,} parameters")
    return figure


def _softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _cells(
    values: np.ndarray, tokens: np.ndarray, labels: Sequence[str] | None, name: Callable[[int], str], *, ylabel: str
) -> Figure:
    """Draw probabilities as colours, with the tokens' names in them if there are not too many."""
    lines, places = values.shape
    figure = Figure(figsize=(min(2 + 0.75 * places, 24), 1.2 + 0.35 * lines), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="probability")
    name_places(axes, labels, x=True, y=False)
    axes.set(xlabel="place", ylabel=ylabel)
    for (i, j), token in np.ndenumerate(tokens if places <= NAMED else tokens[:, :0]):
        colour = "black" if values[i, j] > 0.6 else "white"
        text = printable(name(int(token)))
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, parse_math=False)
    return figure
