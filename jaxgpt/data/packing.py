"""Documents laid into the rows of a batch: each padded into one of its own, or packed one behind another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxgpt import checks
from jaxgpt.data.batches import MOST_ID, Batch, check_room, narrow
from jaxgpt.errors import UsageError

Weights = Sequence[Sequence[float] | np.ndarray] | np.ndarray


def pad_batch(
    documents: checks.IdLists,
    *,
    length: int | None = None,
    weights: Weights | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay each document into a row of its own, padded on the right.

    Padding is known by length and not by id, so `pad_id` may be a token that documents end with. It needs no mask:
    attention is causal, and what stands behind a document has weight 0.

    Args:
        documents: token ids, at least 2 each (the last is only a target).
        length: T; by default that of the longest document, less 1.
        weights: for each token of each document, its weight as a target (its first is none); 1 by default.
        pad_id: what fills the rows.
    """
    texts, scores = _checked_documents(documents, weights)
    longest = max(map(len, texts)) - 1
    length = longest if length is None else checks.whole("length", length, 1)
    if longest > length:
        raise UsageError(f"a document of {longest + 1} tokens does not fit into rows of length {length}")
    batch = _empty_rows(len(texts), length, pad_id)
    for row, text in enumerate(texts):
        _place(batch, row, 0, text, None if scores is None else scores[row])
    return batch


def pack(
    documents: checks.IdLists,
    *,
    length: int,
    weights: Weights | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay documents one behind another into as few rows as best-fit finds, none seeing another.

    Positions restart and segment ids count up with each document, and no document's last token has the next one's
    first as its target. A document too long for a row is continued in further ones, each a segment of its own.

    Args:
        documents: token ids, at least 2 each.
        length: T.
        weights: for each token of each document, its weight as a target (its first is none); 1 by default.
        pad_id: what fills the rows.
    """
    texts, scores = _checked_documents(documents, weights)
    length = checks.whole("length", length, 1)
    placed: list[tuple[int, int, int, int, int]] = []  # row, column, document, its first and one past its last token
    rooms: list[tuple[int, int]] = []  # (free columns, row), sorted
    rows = 0
    for number, text in enumerate(texts):
        for start in range(0, len(text) - 1, length):
            stop = min(start + length + 1, len(text))
            inputs = stop - start - 1
            fit = bisect_left(rooms, (inputs, 0))
            if fit < len(rooms):
                free, row = rooms.pop(fit)
            else:
                free, row, rows = length, rows, rows + 1
            placed.append((row, length - free, number, start, stop))
            if free > inputs:
                insort(rooms, (free - inputs, row))

    batch = _empty_rows(rows, length, pad_id)
    positions, segments = np.zeros_like(batch.tokens), np.zeros_like(batch.tokens)
    count = [0] * rows
    for row, column, number, start, stop in placed:
        part = slice(start, stop)
        _place(batch, row, column, texts[number][part], None if scores is None else scores[number][part])
        count[row] += 1
        columns = slice(column, column + stop - start - 1)
        positions[row, columns] = np.arange(stop - start - 1)
        segments[row, columns] = count[row]
    return replace(batch, positions=positions, segment_ids=segments)


def _empty_rows(rows: int, length: int, pad_id: int) -> Batch:
    pad_id = checks.whole("pad_id", pad_id, 0, MOST_ID)
    check_room(rows, length)
    tokens, targets = (np.full((rows, length), pad_id, np.int32) for _ in range(2))
    return Batch(tokens, targets, np.zeros((rows, length), np.float32))


def _place(batch: Batch, row: int, column: int, text: np.ndarray, weights: np.ndarray | None) -> None:
    columns = slice(column, column + len(text) - 1)
    batch.tokens[row, columns] = text[:-1]
    batch.targets[row, columns] = text[1:]
    batch.weights[row, columns] = 1.0 if weights is None else weights[1:]


def _checked_documents(documents: Any, weights: Any) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    found = [narrow(f"document {i}", ids) for i, ids in enumerate(checks.rows("documents", documents))]
    if not found or min(map(len, found)) < 2:
        raise UsageError("documents must be at least one, of at least 2 tokens each: one to read and one to predict")
    if weights is None:
        return found, None
    if _length(weights) != len(found) or [_length(row) for row in weights] != [len(document) for document in found]:
        raise UsageError("weights must be given for each token of each document")
    try:
        numbers = [np.asarray(row, np.float32) for row in weights]
    except (TypeError, ValueError):
        raise checks.refusal("weights", weights, "lists of numbers") from None
    if not all(row.ndim == 1 and np.isfinite(row).all() for row in numbers):
        raise checks.refusal("weights", weights, "lists of finite numbers")
    return found, numbers


def _length(value: Any) -> int:
    """Return the length of a list or array, without looking into it; -1 of anything else."""
    return len(value) if checks.several(value) and hasattr(value, "__len__") else -1
