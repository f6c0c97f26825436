"""The host's side of a call: prompts are checked, padded and cut to windows here, and chosen tokens collected."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal, SupportsIndex, get_args

import numpy as np

from jaxgpt import checks
from jaxgpt.decode.sampling_config import Overflow
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig

StopIds = SupportsIndex | checks.Ids | Literal["config"] | None
"""An id or several that end a row; "config" for the model's own, None for none."""

# Counters on the device have 32 bits.
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Window:
    """The tokens that the model reads before it goes on one by one.

    Attributes:
        tokens: (B, S) prompts padded on the left, then empty slots.
        width: slots that hold prompts or their padding.
        start: (B,) each row's first slot that holds a token.
        count: tokens that can be chosen until a row's context is over or enough are there.
    """

    tokens: np.ndarray
    width: int
    start: np.ndarray
    count: int


class Rows:
    """Each row's ids so far.

    Attributes:
        stop_ids: ids that end a row.
        ended: (B,) which rows have.
        count: tokens chosen so far by a row that has not.
    """

    def __init__(
        self,
        config: GPTConfig,
        prompts: checks.IdLists,
        *,
        max_new_tokens: SupportsIndex,
        eos_token_id: StopIds,
        overflow: Overflow,
        coarse: bool = False,
    ) -> None:
        """Check and take the prompts; see `generate`, and `stream` for `coarse`."""
        checks.instance("config", config, GPTConfig, "a GPTConfig, as load_pretrained gives it with the parameters")
        count = checks.whole("max_new_tokens", max_new_tokens, 0, MOST_TOKENS, "0 or more, and a whole number")
        checks.choice("overflow", overflow, get_args(Overflow))
        self._context = config.n_positions
        self._bucket = coarse_bucket if coarse else bucket
        self._ids = [_checked(config, row, prompt) for row, prompt in enumerate(checks.rows("prompts", prompts))]
        self._lengths = [len(ids) for ids in self._ids]
        self._begins = [0 for _ in self._ids]
        self._max_new_tokens = count
        longest = self.longest
        if overflow == "error" and longest > self._context:
            raise UsageError(
                f"a prompt of {longest - count} tokens and {count} new ones make {longest}, but the "
                f"model's context is {self._context}: shorten one of them, or let the context slide (overflow 'slide')"
            )
        self.stop_ids = _stop_ids(config, eos_token_id)
        self.ended = np.zeros(len(self._ids), bool)
        self.count = 0

    @property
    def new(self) -> list[list[int]]:
        """Each row's new ids, with the stop id that ended it."""
        return [ids[length:] for ids, length in zip(self._ids, self._lengths, strict=True)]

    @property
    def done(self) -> bool:
        """True when there is nothing left to choose."""
        return self.count == self._max_new_tokens or bool(self.ended.all())

    @property
    def left(self) -> int:
        """The number of tokens that may still be chosen."""
        return self._max_new_tokens - self.count

    def row_seeds(self) -> np.ndarray:
        """Return a number for each row that depends only on its ids and on how many equal rows stand before it.

        So a row draws the same tokens in every batch, and samples of one prompt still differ.
        """
        earlier: Counter[tuple[int, ...]] = Counter()
        row_seeds = []
        for ids in map(tuple, self._ids):
            row_seeds.append(zlib.crc32(np.asarray([earlier[ids], *ids], np.uint32).tobytes()))
            earlier[ids] += 1
        return np.asarray(row_seeds, np.uint32)

    @property
    def longest(self) -> int:
        """Tokens that the longest row may have in the end."""
        return max(self._lengths, default=0) + self._max_new_tokens

    def window(self, spare: int = 0) -> Window:
        """Return what to read next, with `spare` slots or more behind those for what can be chosen.

        A row with more ids than the context goes on from the last half of the context. Rows slide each at its own
        time, so that sharing a batch changes nothing.
        """
        for row, ids in enumerate(self._ids):
            if self.ended[row]:
                self._begins[row] = len(ids) - 1  # it must not take room from the others
            elif len(ids) - self._begins[row] > self._context:
                self._begins[row] = len(ids) - max(self._context // 2, 1)
        rows = [ids[begin:] for ids, begin in zip(self._ids, self._begins, strict=True)]
        longest = max(map(len, rows))
        width = self._bucket(longest)
        room = self._context + 1 - longest  # a full context still predicts a token, which then needs no slot
        tokens = np.zeros((len(rows), self._bucket(width + min(room, self._max_new_tokens) + spare)), np.int32)
        start = np.asarray([width - len(row) for row in rows], np.int32)
        for row, ids in enumerate(rows):
            tokens[row, start[row] : width] = ids
        return Window(tokens, width, start, min(room, self._max_new_tokens - self.count))

    def add(self, tokens: np.ndarray) -> list[int | None]:
        """Append a token to each row that has not ended; return these tokens, with None for the other rows."""
        added = [None if ended else int(token) for token, ended in zip(tokens, self.ended, strict=True)]
        for row, token in enumerate(added):
            if token is not None:
                self._ids[row].append(token)
                self.ended[row] = token in self.stop_ids
        self.count += 1
        return added


def bucket(count: int) -> int:
    """Round up to a multiple of 16 or, for more than 128, of the power of two in (count / 8, count / 4].

    Programs are compiled for sizes: so there are few, and at most a fifth of a long one is padding.
    """
    step = max(16, 1 << max(count.bit_length() - 3, 0))
    return -(-count // step) * step


def coarse_bucket(count: int) -> int:
    """Round up to a power of two, and to 64 at least: a conversation that grows meets few sizes."""
    return max(64, 1 << (count - 1).bit_length())


def _stop_ids(config: GPTConfig, given: StopIds) -> list[int]:
    """Return the ids that end a row; those beyond the vocabulary, which no row has, are left out."""
    if isinstance(given, str):
        checks.choice("eos_token_id", given, ("config",))
        return list(config.eos_token_ids)
    several = checks.ids("eos_token_id", () if given is None else given if checks.several(given) else [given])
    found = [checks.whole("eos_token_id", token, wanted="a token id, several, or None") for token in several]
    return [token for token in found if token < config.vocab_size]


def _checked(config: GPTConfig, row: int, prompt: np.ndarray) -> list[int]:
    """Return a prompt's ids; an empty one becomes the token that begins a text."""
    checks.below(f"prompt {row}", prompt, config.vocab_size)
    if len(prompt):
        return prompt.tolist()
    for token in (config.bos_token_id, *config.eos_token_ids):
        if token is not None and token < config.vocab_size:
            return [token]
    raise UsageError(f"prompt {row} is empty, and the model has no token that begins a text")
