"""Log-probabilities of tokens, many rows at a time: what every figure of this room is made of."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Integer

from jaxgpt import checks
from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.decode.rows import bucket
from jaxgpt.errors import RunError, UsageError, out_of_memory
from jaxgpt.hosts import fetch
from jaxgpt.mesh import (
    OwnRows,
    batch_divisor,
    check_heads,
    check_rows,
    make_mesh,
    parameter_shardings,
    place,
    replicated,
    share_out,
)
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT, applied
from jaxgpt.model.quantized import DecodingMatrix, check_params
from jaxgpt.objectives.cross_entropy import map_logits
from jaxgpt.objectives.outputs import token_log_probs
from jaxgpt.objectives.vocabulary import argmax
from jaxgpt.progress import bar
from jaxgpt.tokenizers import Tokenizer

# Batches that are sorted by length, and computed while the host goes on, before the first is read.
AHEAD = 16
ROWS = 8


@dataclass(frozen=True)
class Row:
    """Tokens to read at once.

    Attributes:
        ids: (N,) of at least 2; each but the last is read, each but the first can be scored.
        first: the place of the first that is scored, from 1.
    """

    ids: Integer[np.ndarray, " N"]
    first: int = 1


@dataclass(frozen=True)
class Scored:
    """The probabilities a model gives a row's tokens from `first` on.

    Attributes:
        ids: these tokens.
        log_probs: each one's log-probability, in nats.
        likeliest: whether it is the one that greedy decoding would choose.
    """

    ids: Integer[np.ndarray, " M"]
    log_probs: Float[np.ndarray, " M"]
    likeliest: Bool[np.ndarray, " M"]

    def where(self, kept: Bool[np.ndarray, " M"]) -> Scored:
        """Return the same of some of the tokens."""
        return Scored(self.ids[kept], self.log_probs[kept], self.likeliest[kept])


class Scorer:
    """A model on a mesh, and how many rows it reads at a time.

    Attributes:
        config, params, tokenizer: the model; its parameters may be quantized.
        model: the module.
        mesh: the devices.
        batch_size: rows at a time, over all devices.
        progress: whether to show bars.
    """

    def __init__(
        self,
        config: GPTConfig,
        params: Any,
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        progress: bool | None = None,
    ) -> None:
        """Place the model on the devices.

        Args:
            config, params, tokenizer: see the class.
            batch_size: None for 8 a device that has rows of its own.
            dtype: of activations.
            mesh: None for one on which all devices share the rows.
            progress: None for where standard error is a terminal.

        Raises:
            UsageError: the parameters are not this config's, or the batch or the heads can't be divided among the
                devices.
        """
        check_params(config, params)
        self.config, self.tokenizer = config, tokenizer
        self.model = GPT(config, jnp.dtype(dtype))
        self.mesh = make_mesh() if mesh is None else mesh
        rows = ROWS * batch_divisor(self.mesh) if batch_size is None else batch_size
        self.batch_size = checks.whole("batch_size", rows, 1)
        check_rows(self.mesh, self.batch_size)
        check_heads(self.mesh, config)
        leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, DecodingMatrix))
        if any(isinstance(leaf, DecodingMatrix) for leaf in leaves):
            if self.mesh.shape["fsdp"] * self.mesh.shape["tensor"] > 1:
                raise UsageError("quantized weights lie whole on every device; leave out --fsdp and --tensor")
            self.params = jax.tree.map(lambda leaf: place(leaf, replicated(self.mesh)), params)
        else:
            self.params = place(params, parameter_shardings(self.mesh, parameters(config)))
        self.progress = sys.stderr.isatty() if progress is None else progress
        rows = OwnRows(self.mesh, parameters(config), self.model.dtype)
        self._of_model = cache(lambda function: rows.each(partial(function, self.model)))

    def score(self, rows: Iterable[Row], *, total: int | None = None, what: str = "tokens") -> Iterator[Scored]:
        """Yield what the model says of each row, in order; rows of about one length are read together.

        Args:
            rows: of at most n_positions + 1 ids.
            total: tokens to score in all, if that is known.
            what: what the bar says.

        Raises:
            UsageError: a row that the model can't read, or of which nothing is scored.
            RunError: the device's memory does not hold a batch.
        """
        waiting = self._checked(rows)
        with bar(what, total=total, unit="tokens", show=self.progress) as shown:
            while chunk := list(islice(waiting, AHEAD * self.batch_size)):
                found = self._score(chunk)
                shown.update(sum(len(one.log_probs) for one in found))
                yield from found

    def read(self, function: Callable[..., Any], *rows: Any) -> Any:
        """Return what a compiled function of (model, parameters, rows …) says of a batch's rows; see `fetch`."""
        return self._of_model(function)(self.params, *share_out(self.mesh, rows))

    def _checked(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield rows, but refuse one of which the model would make NaN, or another row's numbers, silently."""
        most = self.config.n_positions + 1
        for number, row in enumerate(rows):
            ids = checks.ids(f"row {number}", row.ids)
            if not 2 <= len(ids) <= most:
                raise UsageError(f"row {number} has {len(ids)} tokens; it must have 2 to {most}")
            checks.below(f"row {number}", ids, self.config.vocab_size)
            yield Row(ids, checks.whole(f"row {number}: first", row.first, 1, len(ids) - 1))

    def _score(self, rows: Sequence[Row]) -> list[Scored]:
        by_length = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
        batches = [by_length[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        try:
            # All are begun before the first is waited for.
            begun = [self._begin([rows[number] for number in numbers]) for numbers in batches]
            arrays = [fetch(one) for one in begun]
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if (reason := out_of_memory(error)) is None:
                raise
            raise RunError(f"{reason}; try a smaller --batch_size") from error
        found: dict[int, Scored] = {}
        for numbers, (log_probs, likeliest) in zip(batches, arrays, strict=True):
            for at, number in enumerate(numbers):
                row = rows[number]
                ids = row.ids[row.first :]
                found[number] = Scored(ids, log_probs[at, : len(ids)], likeliest[at, : len(ids)])
        return [found[number] for number in range(len(rows))]

    def _begin(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        width = min(bucket(max(len(row.ids) for row in rows) - 1), self.config.n_positions)
        scored = min(bucket(max(len(row.ids) - row.first for row in rows)), width)
        tokens = np.zeros((self.batch_size, width), np.int32)
        targets, places = (np.zeros((self.batch_size, scored), np.int32) for _ in range(2))
        for number, row in enumerate(rows):
            last = len(row.ids) - 1
            tokens[number, :last] = row.ids[:-1]
            targets[number, : last + 1 - row.first] = row.ids[row.first :]
            places[number, : last + 1 - row.first] = np.arange(row.first - 1, last)
        return self.read(score_tokens, tokens, targets, places)


@partial(jax.jit, static_argnames="model")
def score_tokens(
    model: GPT, params: Any, tokens: Int[Array, "B T"], targets: Int[Array, "B P"], places: Int[Array, "B P"]
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
    """Return each target's log-probability in f32, and whether it is the likeliest; logits exist a part at a time.

    There are none where nobody asks what follows: over a choice's context the head would be a third of the work.

    Args:
        model: the module.
        params: its parameters, quantized or not.
        tokens: ids, padded on the right.
        targets: ids to score.
        places: of the tokens that they follow, in each row.
    """
    apply = applied(model, params)
    hidden, _ = apply(tokens, method="hidden")
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    head = apply(method="head")
    matrix = head.dense() if isinstance(head, DecodingMatrix) else head
    return map_logits(_of_targets, hidden, matrix, targets)


def _of_targets(logits: Float[Array, "B P V"], targets: Int[Array, "B P"]) -> tuple[Array, Array]:
    return token_log_probs(logits, targets), argmax(logits) == targets


def windows(ids: np.ndarray | Tokens, *, context: int, stride: int | None = None, first: int = 1) -> Iterator[Row]:
    """Yield rows in which each of a text's tokens from `first` on is scored once.

    Without a stride, windows of `context` tokens stand side by side, and each predicts the token behind it, as in
    training. With one, they begin every `stride` tokens, and each scores what those before it have not: of `context`
    tokens, the last of which is only a target, as in Hugging Face's recipe for "perplexity of fixed-length models".

    Args:
        ids: the text's tokens.
        context: the longest row to read.
        stride: from 1 to context - 1, or None.
        first: the place of the first token to score; what stands before is context.

    Raises:
        UsageError: a context or a stride out of range.
    """
    context = checks.whole("context", context, 1)
    stride = None if stride is None else checks.whole("stride", stride, 1, context - 1)
    length = context if stride is None else context - 1
    start, scored = 0, first
    while scored < len(ids):
        end = min(start + length + 1, len(ids))
        yield Row(ids[start:end], scored - start)
        start, scored = start + (length if stride is None else stride), end


def perplexity(nats: float) -> float:
    """Return the perplexity of so many nats a token, or a word; infinite where no float is as large."""
    return math.inf if nats > 700 else math.exp(nats)
