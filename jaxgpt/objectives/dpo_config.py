"""The config of DPO's loss: a frozen record whose fields are also flags. Nothing here imports JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxgpt.errors import UsageError
from jaxgpt.flags import Positive, Real, check_ranges, flag

DPOLoss = Literal["sigmoid", "robust", "hinge", "ipo"]
Smoothing = Annotated[float, Real(lambda x: 0 <= x < 0.5, "from 0 up and below 0.5")]


@dataclass(frozen=True)
class DPOConfig:
    """The loss of a pair of answers; see `jaxgpt.objectives.dpo`.

    Raises:
        UsageError: a value out of range, or label smoothing with a loss that has none.
    """

    loss: DPOLoss = flag("sigmoid", "the loss of a pair", group="objective")
    beta: Positive = flag(0.1, "the higher, the closer the model stays to the reference", group="objective")
    label_smoothing: Smoothing = flag(
        0.0, "share of pairs that may be the wrong way round: for sigmoid and robust", group="objective"
    )
    length_normalised: bool = flag(False, "take log-probabilities per token", group="objective")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise UsageError(f"label_smoothing is {self.label_smoothing}; only the losses sigmoid and robust have it")
