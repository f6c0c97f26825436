"""The data of each view of the page, as plain values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import regex

from jaxgpt.explore.data import packed
from jaxgpt.inspect.embeddings import cosines, nearest, principal_components
from jaxgpt.inspect.record import Inspection
from jaxgpt.inspect.stages import attention_stages
from jaxgpt.model.atlas import PARTS, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import sinusoids
from jaxgpt.tokenizers.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from jaxgpt.train.metrics import read_rows

# Logits that are kept one by one at each position, if all would be too many; of the others, how many lie where.
KEPT, BINS, MOST_LOGITS = 60, 48, 300_000
# Tokens of whose scores each stage is kept.
STAGED = 24
LENS_TOP = 5
NEIGHBOURS = COMPARED = 8


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what encoding a text needs: the characters, or the merges and the ids of bytes."""
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "char", "chars": tokenizer.chars}
    assert isinstance(tokenizer, BPETokenizer)
    vocab = tokenizer.vocab
    pairs = [(vocab[a], vocab[b], vocab[a + b]) for a, b in tokenizer.merges]
    # Python's \s and JavaScript's differ in a few characters.
    spaces = "".join(chr(i) for i in range(sys.maxunicode + 1) if regex.match(r"\s", chr(i)))
    return {
        "kind": "bpe",
        "byte_ids": [vocab[bytes([byte])] for byte in range(256)],
        "merges": packed(np.asarray(pairs, np.uint32).reshape(-1, 3), "u2" if max(vocab.values()) < 2**16 else "u4"),
        "spaces": spaces,
        "added": {str(token.id): text for text, token in tokenizer.added_tokens.items()},
    }


def embedding_data(params: Any, ids: list[int], known: int) -> dict[str, Any]:
    """Return the text's tokens' neighbours, and a flat map of all of these."""
    table = np.asarray(params["wte"]["embedding"], np.float32)[:known]
    own = sorted(set(ids))
    near = {i: nearest(table, i, NEIGHBOURS) for i in own} if len(table) > 1 else {}
    every = sorted({*own, *(j for found in near.values() for j, _ in found)})
    return {
        "neighbours": {str(i): [[j, round(cosine, 4)] for j, cosine in found] for i, found in near.items()},
        "own": own,
        "ids": every,
        "map": packed(principal_components(table[every])),
    }


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

    def sums(positions: np.ndarray | float) -> np.ndarray:
        """The sum of what attention gives for both orders, unscaled by any weights."""
        rows = [words + positions, words[order] + positions]
        return np.stack([np.asarray(attention_stages(x, scaled=True).out[0].sum(0)) for x in rows])

    found = {name: sums(positions) for name, positions in (("without", 0.0), ("with", table[: len(ids)]))}
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


def attention_data(found: Inspection) -> dict[str, Any]:
    """Return the weights of all heads, the lower triangle alone, and the scores of the first tokens."""
    weights = np.asarray(found.attention.weights[:, 0])
    rows, columns = np.tril_indices(weights.shape[-1])
    few = slice(STAGED)
    x = found.resid_pre[0, 0, few]
    return {
        "weights": packed(weights[:, :, rows, columns], "u1"),
        "scores": packed(found.attention.scores[:, 0, :, few, few]),
        "scales": [_scale(found, layer) for layer in range(len(weights))],
        "symmetric": packed(attention_stages(x).scores[0, 0]),
    }


def _scale(found: Inspection, layer: int) -> float:
    """Return the factor on a layer's scores, as the greatest of them has it."""
    scores, scaled = (np.abs(np.asarray(x[layer])) for x in (found.attention.scores, found.attention.scaled))
    at = np.unravel_index(scores.argmax(), scores.shape)
    return float(scaled[at] / scores[at]) if scores[at] else 1.0


def stream_data(found: Inspection) -> dict[str, Any]:
    """Return the residual stream's norm at each place and position, and those of what is added to it."""
    norms = [
        np.linalg.norm(np.asarray(x[:, 0]), axis=-1) for x in (found.resid_pre, found.attention.out, found.mlp_out)
    ]
    last = np.linalg.norm(np.asarray(found.resid_final), axis=-1)
    stream = np.concatenate([norms[0], last])
    return {"stream": packed(stream, "f4"), "attention": packed(norms[1], "f4"), "mlp": packed(norms[2], "f4")}


def prediction_data(found: Inspection, known: int) -> dict[str, Any]:
    """Return logits: all at the last position, and at the others all too, or the greatest and a histogram."""
    logits = np.asarray(found.logits[0, :, :known], np.float32)
    length, vocab = logits.shape
    rows = []
    for t in range(length):
        if logits.size <= MOST_LOGITS or t == length - 1 or vocab <= KEPT:
            rows.append({"logits": packed(logits[t])})
            continue
        order = np.argsort(-logits[t], kind="stable")
        counts, edges = np.histogram(logits[t][order[KEPT:]], BINS)
        centres = (edges[1:] + edges[:-1]) / 2
        rows.append(
            {
                "ids": order[:KEPT].tolist(),
                "logits": packed(np.concatenate([logits[t][order[:KEPT]], centres[counts > 0]])),
                "counts": counts[counts > 0].tolist(),
            }
        )
    data: dict[str, Any] = {"rows": rows, "losses": _losses(found, known)}
    if found.lens is not None:
        lens = np.asarray(found.lens[:, 0, :, :known], np.float32)
        best = np.argsort(-lens, axis=-1, kind="stable")[..., :LENS_TOP]
        log_probs = lens - _logsumexp(lens)
        data["lens"] = best.tolist()
        data["lens_probs"] = packed(np.exp(np.take_along_axis(log_probs, best, -1)), "f4")
    if found.scores is not None:
        data["scores"] = packed(found.scores[0], "f4")
    return data


def compared_data(found: Inspection, known: int) -> dict[str, Any]:
    """Return another model's losses and likeliest tokens."""
    logits = np.asarray(found.logits[0, :, :known], np.float32)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :COMPARED]
    probs = np.exp(np.take_along_axis(logits - _logsumexp(logits), best, -1))
    return {"losses": _losses(found, known), "best": best.tolist(), "probs": packed(probs, "f4")}


def _losses(found: Inspection, known: int) -> list[float]:
    logits, tokens = np.asarray(found.logits[0, :-1, :known], np.float64), np.asarray(found.tokens[0, 1:])
    log_probs = logits - _logsumexp(logits)
    return [round(-float(log_probs[t, token]), 4) for t, token in enumerate(tokens)]


def _logsumexp(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(-1, keepdims=True))


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


def training_data(run: Path | None) -> dict[str, Any]:
    """Return a run's metrics, of at most a few hundred rows, and its last samples; empty without a run."""
    if run is None:
        return {}
    rows = [row for row in read_rows(run / "metrics.jsonl") if row.get("loss") is not None]
    every = {split: [row for row in rows if row["split"] == split] for split in ("train", "val")}
    kept = {split: found[:: max(len(found) // 300, 1)] for split, found in every.items()}
    names = ("step", "loss", "lr", "grad_norm")
    samples = sorted((run / "samples").glob("*.txt"), key=lambda file: file.stat().st_mtime)[-6:]
    return {
        **{split: [[row.get(name) for name in names] for row in found] for split, found in kept.items()},
        "samples": [[file.name, file.read_text(encoding="utf-8", errors="replace")[:800]] for file in samples],
    }


def scaling_data(config: GPTConfig, total: int, run: Path | None) -> dict[str, Any]:
    """Return the model's parameters N and, of a run, the tokens D that it has read."""
    data: dict[str, Any] = {"parameters": total}
    if run is not None:
        flags = json.loads((run / "config.json").read_text(encoding="utf-8")).get("flags") or {}
        steps = [row["step"] for row in read_rows(run / "metrics.jsonl")]
        sizes = [flags.get(name) for name in ("batch_size", "gradient_accumulation_steps")]
        if steps and all(isinstance(size, int) for size in sizes):
            data["tokens"] = max(steps) * sizes[0] * (flags.get("block_size") or config.n_positions)
    return data
