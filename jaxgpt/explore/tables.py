"""The data of the views of parameters: embeddings, positions, and all of them by their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgpt.explore.data import packed
from jaxgpt.inspect.embeddings import bag_of_words, cosines, nearest_to_each, principal_components
from jaxgpt.model.atlas import PARTS, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import sinusoids

NEIGHBOURS, UNSEEN = 8, 24


def embedding_data(steps: Mapping[int | None, np.ndarray], shown: int | None, ids: list[int]) -> dict[str, Any]:
    """Return the text's tokens' neighbours at each step of training, and a flat map of all of these.

    Args:
        steps: (V, D) the table at each step that is known; None stands for an unknown one.
        shown: the step of the model that the page shows.
        ids: the text's tokens.
    """
    table, own = steps[shown], sorted(set(ids))
    near = {step: _neighbours(rows, own) for step, rows in steps.items()}
    every = sorted({*own, *(j for found in near[shown] for j, _ in found)})
    # The directions in which they differ most over all steps, so that maps of different steps can be compared.
    places = principal_components(np.concatenate([rows[every] for rows in steps.values()])).reshape(len(steps), -1, 2)
    from_mean = np.linalg.norm(table - table.mean(0), axis=-1)
    return {
        "own": own,
        "ids": every,
        "snapshots": [
            {"step": step, "shown": step == shown, "neighbours": found, "map": packed(place)}
            for (step, found), place in zip(near.items(), places, strict=True)
        ],
        "unseen": np.argsort(from_mean, kind="stable")[:UNSEEN].tolist() if len(table) > 10 * UNSEEN else [],
    }


def _neighbours(table: np.ndarray, own: list[int]) -> list[list[tuple[int, float]]]:
    found = nearest_to_each(table, own, min(NEIGHBOURS, len(table) - 1))
    return [[(j, round(cosine, 3)) for j, cosine in row] for row in found]


def position_data(config: GPTConfig, params: Any, ids: list[int]) -> dict[str, Any]:
    """Return the position table, the sinusoidal one, cosines, and how much a text's order tells."""
    shape = (min(config.n_positions, 96), min(config.n_embd, 96))
    fixed = sinusoids(config.n_positions, config.n_embd)
    table = np.asarray(params["wpe"]["embedding"] if "wpe" in params else fixed, np.float32)
    places = np.unique(np.linspace(0, len(table) - 1, 64).astype(int))
    words = np.asarray(params["wte"]["embedding"], np.float32)[ids]
    if "wpe" not in params:
        words = words * config.n_embd**0.5
    order = np.random.default_rng(0).permutation(len(ids))
    found = bag_of_words(words, table[: len(ids)], order.tolist())
    return {
        "learned": "wpe" in params,
        "table": packed(table[: shape[0], : shape[1]]),
        "sinusoidal": packed(fixed[: shape[0], : shape[1]]),
        "places": places.tolist(),
        "cosines": packed(cosines(table[places])),
        "order": order.tolist(),
        "bag": {
            name: float(np.linalg.norm(x[0] - x[1]) / max(np.linalg.norm(x[0]), 1e-9)) for name, x in found.items()
        },
    }


def architecture_data(config: GPTConfig, params: Any) -> dict[str, Any]:
    """Return every parameter with its shape, its count and a histogram; and the share of each part."""
    rows, shares = [], dict.fromkeys(PARTS, 0)
    for parameter in parameters(config):
        leaf = params
        for key in parameter.path:
            leaf = leaf[key]
        values = np.asarray(leaf, np.float32)
        counts, edges = np.histogram(values, 40)
        shares[parameter.row.part] += values.size
        rows.append(
            {
                "path": "/".join(parameter.path),
                "shape": list(values.shape),
                "axes": parameter.row.pattern,
                "part": parameter.row.part,
                "counts": counts.tolist(),
                "from": float(edges[0]),
                "to": float(edges[-1]),
                "std": float(values.std()),
            }
        )
    return {"parameters": rows, "shares": {part: share for part, share in shares.items() if share}}
