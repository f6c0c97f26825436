"""The data of the views of a text: its tokens, and what the model computes of them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import regex

from jaxgpt.errors import UsageError
from jaxgpt.explore.data import packed
from jaxgpt.inspect.record import Inspection, logit_lens
from jaxgpt.inspect.stages import attention_stages
from jaxgpt.model.config import GPTConfig
from jaxgpt.tokenizers.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

# Logits that are kept one by one at each position, if all would be too many; of the others, how many lie where.
KEPT, BINS, MOST_LOGITS = 60, 48, 300_000
# Weights of attention that are kept: of a long text, those of its first places.
MOST_WEIGHTS = 1_800_000
# Tokens of whose attention each stage is kept, and how many numbers of each of its vectors.
STAGED, WIDTH = 24, 64
LENS_TOP = 5
COMPARED = 8


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what encoding a text needs: the characters; or merges, the ids of bytes, and added tokens."""
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "char", "chars": tokenizer.chars}
    if not isinstance(tokenizer, BPETokenizer):
        raise UsageError(
            "the page shows how bytes become tokens, as a tokenizer of another kind than GPT-2's does not tell"
        )
    vocab = tokenizer.vocab
    pairs = [(vocab[a], vocab[b], vocab[a + b]) for a, b in tokenizer.merges]
    byte_ids = [vocab[bytes([byte])] for byte in range(256)]
    others = set(vocab.values()).difference(byte_ids, (merged for _, _, merged in pairs))
    # Python's \s and JavaScript's differ in a few characters.
    spaces = "".join(regex.findall(r"\s", "".join(map(chr, range(sys.maxunicode + 1)))))
    return {
        "kind": "bpe",
        "byte_ids": byte_ids,
        "merges": packed(np.asarray(pairs, np.uint32).reshape(-1, 3), "u2" if max(vocab.values()) < 2**16 else "u4"),
        "others": {str(i): list(piece) for piece, i in vocab.items() if i in others},
        "spaces": spaces,
        "added": [asdict(token) for token in tokenizer.added_tokens.values()],
    }


def attention_data(found: Inspection) -> dict[str, Any]:
    """Return the weights of all heads, the lower triangle alone, and the stages of the first tokens."""
    weights = np.asarray(found.attention.weights[:, 0])
    layers, heads, length, _ = weights.shape
    kept = min(length, int((2 * MOST_WEIGHTS / (layers * heads)) ** 0.5))
    rows, columns = np.tril_indices(kept)
    few = slice(STAGED)
    x = found.resid_pre[0, 0, few]
    return {
        "kept": kept,
        "weights": packed(weights[:, :, rows, columns], "u1"),
        "scores": packed(found.attention.scores[:, 0, :, few, few]),
        "scales": [_scale(found, layer) for layer in range(layers)],
        "symmetric": packed(attention_stages(x).scores[0, 0]),
        "heads": packed(found.attention.heads[:, 0, :, few, :WIDTH], "i1"),
        "out": packed(found.attention.out[:, 0, few, :WIDTH], "i1"),
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


def prediction_data(config: GPTConfig, params: Any, found: Inspection, known: int) -> dict[str, Any]:
    """Return logits less the greatest: at the last position all, elsewhere all or the greatest and a histogram."""
    logits = np.asarray(found.logits[0, :, :known], np.float32)
    # No softmax changes by it, but f16 is finest about 0, and GPT-2's logits lie near -100.
    logits = logits - logits.max(-1, keepdims=True)
    length, vocab = logits.shape
    rows = []
    for t in range(length):
        if logits.size <= MOST_LOGITS or t == length - 1 or vocab <= KEPT:
            rows.append({"logits": packed(logits[t])})
            continue
        best = _likeliest(logits[t], KEPT)
        counts, edges = np.histogram(np.delete(logits[t], best), BINS)
        centres = (edges[1:] + edges[:-1]) / 2
        rows.append(
            {
                "ids": best.tolist(),
                "logits": packed(np.concatenate([logits[t][best], centres[counts > 0]])),
                "counts": counts[counts > 0].tolist(),
            }
        )
    data: dict[str, Any] = {"rows": rows, "losses": _losses(found, known)}
    streams = [*found.resid_pre, found.resid_final]
    # One depth at a time: logits of a large vocabulary at all of them would be gigabytes.
    data["lens"] = [_best(np.asarray(logit_lens(config, params, x)[0, :, :known]), LENS_TOP) for x in streams]
    if found.scores is not None:
        data["scores"] = packed(found.scores[0], "f4")
    return data


def compared_data(found: Inspection, known: int, top: int = COMPARED) -> dict[str, Any]:
    """Return another model's losses and likeliest tokens."""
    return {"losses": _losses(found, known), **_best(np.asarray(found.logits[0, :, :known]), top)}


def _best(logits: np.ndarray, top: int) -> dict[str, Any]:
    """Return at each place the likeliest ids with their probabilities."""
    logits = np.asarray(logits, np.float32)
    best = _likeliest(logits, min(top, logits.shape[-1]))
    return {"best": best.tolist(), "probs": packed(np.exp(np.take_along_axis(logits - _logsumexp(logits), best, -1)))}


def _likeliest(logits: np.ndarray, top: int) -> np.ndarray:
    """Return the `top` ids (..., top) of the greatest logits (..., V), the greatest first."""
    few = np.argpartition(-logits, top - 1, axis=-1)[..., :top]
    return np.take_along_axis(few, np.argsort(-np.take_along_axis(logits, few, -1), axis=-1, kind="stable"), -1)


def _losses(found: Inspection, known: int) -> list[float]:
    logits, tokens = np.asarray(found.logits[0, :-1, :known], np.float64), np.asarray(found.tokens[0, 1:])
    log_probs = logits - _logsumexp(logits)
    return [round(-float(log_probs[t, token]), 4) for t, token in enumerate(tokens)]


def _logsumexp(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(-1, keepdims=True))
