"""Settings of sampling: one frozen record, static for `jit`, so that a strategy that is off costs nothing.

Nothing here imports JAX, so that a bad flag is an answer, not a wait. `jaxgpt.decode.sampling` does what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from jaxgpt import checks
from jaxgpt.model.config import GPTConfig

Overflow = Literal["error", "slide"]
Truncate = Literal["none", "left"]
DEFAULT_COUNT = 200
"""Tokens of a text where nobody says how many."""

# Logits divided by what is below would leave f32, as what is above does; tokens are certain, or all alike, long before.
COLDEST = 1e-30
HOTTEST = 1e30
PENALTIES = (1e-6, 1e6)


@dataclass(frozen=True)
class Sampling:
    """Strategies, applied in this order, which is Hugging Face's; None is off.

    Attributes:
        repetition_penalty: divides the positive logits of tokens that the row already has, prompt included, and
            multiplies the negative ones (Keskar et al. 2019, section 4.1). Of a row whose context has slid, only the
            tokens in the context count.
        temperature: divides the logits; 0, and what is as good as 0, takes the likeliest token, which no filter below
            removes.
        top_k: keep the k likeliest tokens; more than there are keeps all.
        top_p: keep the fewest likeliest tokens with this much probability together (Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        vocab_size: ids from here up only pad the embedding table and are never chosen. None: as the model's config
            says; `config.vocab_size` for all.
        logits_processor: a function of JAX's arrays that comes before all the others: logits (B, V), tokens (B, S) so
            far, and which of these are the row's (B, S), no padding → logits (B, V). A program is compiled for each.

    Raises:
        UsageError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    vocab_size: int | None = None
    logits_processor: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        low, high = PENALTIES
        # A comparison with NaN is False, so NaN never passes.
        self._check("temperature", lambda x: 0 <= x < math.inf, "0 (take the likeliest) or a positive number")
        self._check("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1, or none")
        self._check("min_p", lambda x: 0 <= x <= 1, "from 0 to 1, or none")
        self._check("repetition_penalty", lambda x: low <= x <= high, f"a number from {low:g} to {high:g}, or none")
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise checks.refusal("logits_processor", self.logits_processor, "a function, or none")
        for name in ("top_k", "vocab_size"):
            if (value := getattr(self, name)) is not None:
                wanted = "a whole number from 1 up, or none"
                object.__setattr__(self, name, checks.whole(name, value, 1, wanted=wanted))

    def _check(self, name: str, valid: Callable[[float], bool], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None or name == "temperature":
            if not valid(number := checks.real(name, value, wanted)):
                raise checks.refusal(name, value, wanted)
            object.__setattr__(self, name, number)

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken."""
        return self.temperature < COLDEST


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, as keywords of `generate`, `stream` and `generate_many`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    vocab_size: int | None
    logits_processor: Callable[..., Any] | None


def fitted(sampling: Sampling, config: GPTConfig) -> Sampling:
    """Return what a sampling means for a model: ids that only pad its table are never chosen."""
    checks.instance("sampling", sampling, Sampling, "a Sampling of jaxgpt.decode.sampling_config")
    known = config.tokenizer_vocab_size if sampling.vocab_size is None else sampling.vocab_size
    return replace(sampling, vocab_size=known and min(known, config.vocab_size))
