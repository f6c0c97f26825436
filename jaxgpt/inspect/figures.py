"""Figures of what a model computes, for notebooks: each function returns a matplotlib `Figure` of the values given.

Values are plain arrays, or the record of `inspect`, of which one row is shown, without its padding. A notebook shows a
figure that is a cell's last line; elsewhere `figure.savefig("name.png")` writes it. The palette is safe
for colour-blind eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.inspect.drawing import AMOUNTS, BLUE, GREEN, ORANGE, draw_image, name_places, own_places, printable
from jaxgpt.inspect.embeddings import bag_of_words, cosines, nearest_to_each, principal_components
from jaxgpt.inspect.record import Inspection
from jaxgpt.model.attention import NEVER, AttentionStages
from jaxgpt.model.gpt import sinusoids

Values = Array | np.ndarray


def plot_tokens(pieces: Sequence[str | bytes], ids: Sequence[int], *, width: int = 72) -> Figure:
    """Draw a text cut into its tokens, each with its id and, where it is no single one, its number of bytes.

    Args:
        pieces: each token's text or bytes, as `tokenizer.decode_bytes([id])` gives them.
        ids: each token's id.
        width: characters in a line.
    """
    if len(pieces) != len(ids):
        raise UsageError(f"pieces: {len(pieces)} of them, but {len(ids)} ids")
    boxes, x, line = [], 0, 0
    for piece, token in zip(pieces, ids, strict=True):
        text = printable(piece)
        size = max(len(text), len(str(token))) + 1
        if x and x + size > width:
            x, line = 0, line + 1
        boxes.append((x, line, size, text, token, len(piece if isinstance(piece, bytes) else piece.encode())))
        x += size
    figure = Figure(figsize=(0.13 * width, 0.62 * (line + 1) + 0.3), layout="constrained")
    axes = figure.subplots()
    for i, (x, line, size, text, token, count) in enumerate(boxes):
        colour = (BLUE, ORANGE, GREEN)[i % 3]
        axes.add_patch(Rectangle((x, line), size, 0.9, facecolor=colour, alpha=0.2, edgecolor=colour))
        centre: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
        axes.text(x + size / 2, line + 0.3, text, family="monospace", fontsize=9, **centre)
        below = str(token) if count == 1 else f"{token}\n{count} bytes" if size > 7 else str(token)
        axes.text(x + size / 2, line + 0.68, below, fontsize=5, color="dimgray", **centre)
    axes.set(xlim=(0, width), ylim=(max(line, boxes[-1][1] if boxes else 0) + 1, 0))
    axes.axis("off")
    return figure


def plot_embeddings(
    table: Float[Values, "V D"], tokens: checks.Ids, *, neighbours: int = 5, name: Callable[[int], str] = str
) -> Figure:
    """Draw a flat map (principal components) of some tokens and those nearest to each by cosine.

    Args:
        table: the token table.
        tokens: ids; their neighbours are drawn in another colour.
        neighbours: of each token.
        name: of an id.

    Raises:
        UsageError: there are no tokens, or one is not in the table.
    """
    table = np.asarray(table, np.float32)
    ids = checks.ids("tokens", tokens)
    if not len(ids):
        raise checks.refusal("tokens", tokens, "one token id or more")
    checks.below("tokens", ids, len(table))
    own = list(dict.fromkeys(ids.tolist()))
    neighbours = checks.whole("neighbours", neighbours)
    near = {j for row in nearest_to_each(table, own, neighbours) for j, _ in row} - set(own)
    every = [*own, *sorted(near)]
    places = principal_components(table[every])
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    groups = ((slice(len(own)), ORANGE, "tokens"), (slice(len(own), None), BLUE, "their neighbours"))
    for part, colour, label in groups:
        axes.scatter(*places[part].T, s=14, color=colour, label=label)
    for token, place in zip(every, places, strict=True):
        axes.annotate(printable(name(token)), place, (3, 3), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend()
    return figure


def plot_positions(table: Float[Values, "P D"]) -> Figure:
    """Draw a table of positions, the sinusoidal one of the same size, and the cosine of each position with each."""
    table = np.asarray(table, np.float32)
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, values in zip(
        panels, ("this table", "sinusoidal", "cosine between positions"),
        (table, sinusoids(*table.shape), cosines(table)), strict=True,
    ):  # fmt: skip
        draw_image(axes, values, title, signed=True)
        axes.set(xlabel="dimension", ylabel="position")
    panels[2].set(xlabel="position")
    return figure


def plot_bag_of_words(
    words: Float[Values, "T D"], positions: Float[Values, "T D"], order: Sequence[int] | None = None
) -> Figure:
    """Draw what attention without weights gives for the same words in two orders, with positions and without.

    Args:
        words: vectors of a text's tokens.
        positions: of its places.
        order: the other order; None for the reverse.
    """
    words = np.asarray(words, np.float32)
    found = bag_of_words(words, np.asarray(positions), range(len(words))[::-1] if order is None else order)
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axes, (name, (one, other)) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        axes.plot(one, color=BLUE, linewidth=3, label="as it is")
        axes.plot(other, color=ORANGE, linestyle="--", label="in another order")
        axes.set(title=f"{name} positions", xlabel="dimension", ylabel="sum over all places")
        axes.legend()
    return figure


def plot_attention(
    weights: Inspection | Float[Values, "L H T S"],
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    row: int = 0,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw where each head looks: a query a row, a key a column.

    Args:
        weights: of all layers and heads, or a record. Those of `attention_stages(…).weights` fit, as one layer.
        heads: which (layer, head) to draw; None for all, a layer a row.
        row: of a record.
        labels: the text at each place.

    Raises:
        UsageError: there are no heads, or one is none of these.
    """
    if isinstance(weights, Inspection):
        queries, keys = own_places(weights, row)
        weights = weights.attention.weights[:, row, :, queries, keys]
    weights = np.asarray(weights)
    layers, count = weights.shape[:2]
    grid = heads is None
    shown = [(i, j) for i in range(layers) for j in range(count)] if heads is None else list(heads)
    if not shown:
        raise checks.refusal("heads", heads, "one (layer, head) or more, or None")
    for layer, head in shown:
        checks.whole("layer", layer, 0, layers - 1)
        checks.whole("head", head, 0, count - 1)
    columns = count if grid else min(len(shown), 3)
    side = 1.4 if grid and len(shown) > 1 else 4.5
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(max(side * columns, 4), max(side * lines, 2)), layout="constrained" if side > 2 else None)
    if side < 2:  # to lay out hundreds of pictures with nothing beside them would take as long as to draw them
        width, height = figure.bbox_inches.size
        figure.subplots_adjust(0.05 / width, 0.05 / height, 1 - 0.05 / width, 1 - 0.2 / height, 0.05, 0.2)
    for axes, (layer, head) in zip(figure.subplots(lines, columns, squeeze=False).flat, shown, strict=False):
        axes.imshow(weights[layer, head], cmap=AMOUNTS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"layer {layer}, head {head}", fontsize=7 if side < 2 else 10)
        if side < 2:
            axes.set(xticks=[], yticks=[])
        else:
            name_places(axes, labels, x=True, y=weights.shape[2] == weights.shape[3])
            axes.set(xlabel="key", ylabel="query")
    return figure


def plot_attention_stages(
    stages: Inspection | AttentionStages,
    layer: int = 0,
    head: int = 0,
    *,
    row: int = 0,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw a head's attention step by step: scores, scaled, masked, softmax, weighted values, and all heads behind W_O.

    Args:
        stages: a record, or what `attention_stages` returns.
        layer, head: which.
        row: of the batch.
        labels: the text at each place.
    """
    queries = keys = slice(None)
    if isinstance(stages, Inspection):
        (queries, keys), stages = own_places(stages, row), stages.attention
    layers = stages.scores.shape[0] if stages.scores.ndim == 5 else 1
    layer = checks.whole("layer", layer, 0, layers - 1)
    head = checks.whole("head", head, 0, stages.scores.shape[-3] - 1)
    at: tuple[int, ...] = (layer, row) if stages.scores.ndim == 5 else (row,)
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    titles = {"scores": "scores q·k", "scaled": "scaled", "masked": "masked", "weights": "softmax"}
    for axes, (name, title) in zip(panels, titles.items(), strict=False):
        values = np.asarray(getattr(stages, name)[(*at, head, queries, keys)])
        hidden = values <= NEVER / 2
        # Under its mask, too, the array must hold what a scale of colours can count with.
        draw_image(axes, np.ma.array(np.where(hidden, 0, values), mask=hidden), title, signed=name != "weights")
        name_places(axes, labels, x=True, y=values.shape[0] == values.shape[1])
        axes.set(xlabel="key", ylabel="query")
    for axes, values, title in (
        (panels[4], stages.heads[(*at, head, queries)], "values weighted by these"),
        (panels[5], stages.out[(*at, queries)], "what all heads add"),
    ):
        draw_image(axes, np.asarray(values), title, signed=True)
        name_places(axes, labels, x=False, y=True)
        axes.set(xlabel="dimension", ylabel="query")
    return figure


def plot_residual_stream(
    stream: Inspection | Float[Values, "M T D"],
    attention: Float[Values, "L T D"] | None = None,
    mlp: Float[Values, "L T D"] | None = None,
    *,
    row: int = 0,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw the residual stream's norm by depth and place, and the mean norms of what the blocks add to it.

    Args:
        stream: before each block and behind the last; or a record.
        attention, mlp: what each block's two parts add.
        row: of a record.
        labels: the text at each place.
    """
    if isinstance(stream, Inspection):
        found, (own, _) = stream, own_places(stream, row)
        attention, mlp = found.attention.out[:, row, own], found.mlp_out[:, row, own]
        stream = np.concatenate([found.resid_pre[:, row, own], found.resid_final[None, row, own]])
    norms = np.linalg.norm(np.asarray(stream), axis=-1)
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_image(left, norms, "norm of the stream", signed=False)
    name_places(left, labels, x=True, y=False)
    left.set(xlabel="place", ylabel="blocks passed", yticks=np.arange(len(norms)))
    right.plot(np.arange(len(norms)), norms.mean(-1), color="black", label="stream")
    parts = (("attention adds", attention, BLUE, "o"), ("feed-forward adds", mlp, ORANGE, "s"))
    for label, values, colour, marker in parts:
        if values is not None:
            means = np.linalg.norm(np.asarray(values), axis=-1).mean(-1)
            right.plot(np.arange(len(means)) + 0.5, means, color=colour, marker=marker, label=label)
    right.set(xlabel="blocks passed", ylabel="mean norm")
    right.grid(alpha=0.3)
    right.legend()
    return figure
