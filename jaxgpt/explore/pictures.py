"""Pictures of the views for who reads the page without scripts: `jaxgpt.inspect`'s figures, which don't move."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from jaxgpt.inspect.figures import plot_attention, plot_embeddings, plot_positions, plot_residual_stream
from jaxgpt.inspect.power_law import plot_scaling
from jaxgpt.inspect.prediction_figures import plot_parameters, plot_predictions
from jaxgpt.inspect.record import Inspection
from jaxgpt.model.config import GPTConfig
from jaxgpt.train.metrics import Row, plot_training

ABSENT = {
    "training": "A run's curves and samples stand here, of a folder that train.py wrote; these are weights alone.",
    "scaling": "A run from new weights stands here among the best for its compute, by the tokens that it has read; of "
    "these weights they are not known.",
}
"""What is said in the place of a view that a model has nothing for."""
VIEWS = ("embeddings", "positions", "attention", "stream", "predictions", "architecture", "training", "scaling")
# Of a long text and a large model, what a small picture has room for.
MOST_PLACES, MOST_HEADS, MOST_TOKENS = 48, 12, 60
_DPI = 50


def pictures(
    config: GPTConfig,
    params: Any,
    found: Inspection,
    name: Callable[[int], str],
    rows: Sequence[Row],
    scaling: Mapping[str, Any],
    known: int,
) -> dict[str, str]:
    """Return an element with a picture of each view, by the names in `VIEWS`; "" where there is nothing to see.

    Args:
        config, params: the model.
        found: what it computed.
        name: of an id.
        rows: a run's metrics.
        scaling: what `scaling_data` gives.
        known: ids from here up stand for no text.
    """
    ids = np.asarray(found.tokens[0]).tolist()
    few, labels = slice(MOST_PLACES), [name(token) for token in ids[:MOST_PLACES]]
    table = np.asarray(params["wte"]["embedding"], np.float32)[:known]
    drawn = {
        "embeddings": plot_embeddings(table, ids[:MOST_TOKENS], neighbours=min(2, len(table) - 1), name=name),
        "positions": plot_positions(np.asarray(found.position_embeddings[0])),
        "attention": plot_attention(np.asarray(found.attention.weights[:MOST_HEADS, 0, :MOST_HEADS, few, few])),
        "stream": plot_residual_stream(found, labels=labels if len(ids) <= MOST_PLACES else None),
        "predictions": plot_predictions(np.asarray(found.logits[0, few, :known]), labels=labels, name=name),
        "architecture": plot_parameters(config),
    }
    if rows:
        drawn["training"] = plot_training(rows)
    runs = [tuple(run) for run in scaling.get("ladder", {}).get("runs", ())]
    if "tokens" in scaling:
        runs.append((scaling["parameters"], scaling["tokens"], scaling.get("loss")))
    if runs:
        sizes, read, losses = (list(column) for column in zip(*runs, strict=True))
        drawn["scaling"] = plot_scaling(sizes, read, losses if len(runs) > 1 and None not in losses else None)
    return {
        view: _element(view, drawn[view]) if view in drawn else f'<p class="note">{ABSENT[view]}</p>' for view in VIEWS
    }


def _element(view: str, figure: Any) -> str:
    raw = BytesIO()
    figure.savefig(raw, format="png", dpi=_DPI, pil_kwargs={"optimize": True})
    return f'<img alt="{view}" src="data:image/png;base64,{base64.b64encode(raw.getvalue()).decode()}">'
