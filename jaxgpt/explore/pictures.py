"""Pictures of the views for who reads the page without scripts: they don't move, and are small."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxgpt.inspect.embeddings import cosines, principal_components
from jaxgpt.inspect.record import Inspection

MOST_PLACES = 64  # of the small pictures of heads
_SIGNED = {"cmap": "PuOr_r", "aspect": "auto", "interpolation": "nearest"}
_LENGTHS = {"cmap": "Blues", "aspect": "auto", "interpolation": "nearest"}


def pictures(found: Inspection, params: Any, curves: Mapping[str, Any]) -> dict[str, str]:
    """Return elements with a picture each, by the name of the view; tokens are named by their ids, never by texts.

    Args:
        found: what the model computed.
        params: its parameters.
        curves: those of the training view; empty without a run.
    """
    ids = np.unique(np.asarray(found.tokens[0]))
    places = principal_components(np.asarray(params["wte"]["embedding"], np.float32)[ids])
    figure, (axes,) = _figure("Embeddings of the text's tokens, by their ids")
    axes.scatter(*places.T, s=8)
    for token, place in zip(ids, places, strict=True):
        axes.annotate(str(token), tuple(place), fontsize=7)
    drawn = {"embeddings": figure}

    table = np.asarray(found.position_embeddings[0], np.float32)
    figure, (left, right) = _figure("Position vectors of the text's places (left) and their cosines", 2)
    most = np.abs(table).max(initial=1e-9)
    left.imshow(table[:, :96], vmin=-most, vmax=most, **_SIGNED)
    right.imshow(cosines(table), vmin=-1, vmax=1, **_SIGNED)
    drawn["positions"] = figure

    weights = np.sqrt(np.asarray(found.attention.weights[:, 0, :, :MOST_PLACES, :MOST_PLACES]))
    layers, heads, length, _ = weights.shape
    framed = np.pad(weights, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.3)
    figure, (axes,) = _figure("Attention: layers down, heads across")
    axes.imshow(framed.transpose(0, 2, 1, 3).reshape(layers * (length + 1), heads * (length + 1)), **_LENGTHS)
    axes.set_axis_off()
    drawn["attention"] = figure

    stream = np.concatenate([np.asarray(found.resid_pre[:, 0]), np.asarray(found.resid_final)])
    figure, (axes,) = _figure("Length of the residual stream: depth down, places across")
    figure.colorbar(axes.imshow(np.linalg.norm(stream, axis=-1), **_LENGTHS))
    drawn["stream"] = figure

    if curves:
        figure, many = _figure("Curves over training's steps", len(curves))
        for axes, (name, splits) in zip(many, curves.items(), strict=True):
            for split, points in splits.items():
                axes.plot(*zip(*points, strict=True), label=split)
            axes.set_title(name, fontsize=8)
            axes.legend(fontsize=7)
        drawn["training"] = figure
    return {name: _element(figure) for name, figure in drawn.items()}


def _figure(title: str, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(5, 2.6 * columns), 3.4), dpi=80, layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _element(figure: Figure) -> str:
    title, raw = figure.get_suptitle(), BytesIO()
    figure.savefig(raw, format="png")
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(raw.getvalue()).decode()}">'
