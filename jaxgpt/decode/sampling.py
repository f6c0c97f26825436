"""How the next token is chosen: one frozen record, static for `jit`, so that what is off costs nothing.

Nothing here imports JAX, so that a bad flag is an answer, not a wait. `jaxgpt.decode.choose` does what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxgpt.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Strategies, applied in this order, which is Hugging Face's; None is off.

    Attributes:
        repetition_penalty: divides the positive logits of tokens that the row already has, prompt included, and
            multiplies the negative ones (Keskar et al. 2019, section 4.1). Of a row whose context has slid, only the
            tokens in the context count.
        temperature: divides the logits; 0 takes the likeliest token, which no filter below removes.
        top_k: keep the k likeliest tokens; more than there are keeps all.
        top_p: keep the fewest likeliest tokens with this much probability together (Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        vocab_size: ids from here up only pad the embedding table and are never chosen; pass the tokenizer's. None:
            every id of the model can be chosen.

    Raises:
        UsageError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        # A comparison with NaN is False, so NaN never passes.
        self._check("temperature", 0 <= self.temperature < math.inf, "0 (take the likeliest) or a positive number")
        self._check("top_k", self.top_k is None or self.top_k >= 1, "a whole number from 1 up, or none")
        self._check("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or none")
        self._check("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or none")
        penalty = self.repetition_penalty
        self._check("repetition_penalty", penalty is None or 0 < penalty < math.inf, "a positive number, or none")
        self._check("vocab_size", self.vocab_size is None or self.vocab_size >= 1, "a whole number from 1 up, or none")

    def _check(self, name: str, valid: bool, wanted: str) -> None:
        if not valid:
            raise UsageError(f"{name} is {getattr(self, name)}; it must be {wanted}")


GREEDY = Sampling()
