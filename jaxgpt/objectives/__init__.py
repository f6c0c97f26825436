"""A model's parameters and a batch come in; the sum of a loss, its weight and metrics go out.

Pure functions, one a stage: pretraining (and instruction tuning), classification, reward model, DPO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.objectives.base import Objective, Sums, with_adapters
    from jaxgpt.objectives.classification import classify, confusion, predict
    from jaxgpt.objectives.next_tokens import pretrain
    from jaxgpt.objectives.preferences import (
        dpo,
        no_reference,
        read_reference,
        reference_log_probs,
        reward,
        with_reference,
        write_reference,
    )

__all__ = [
    "Objective",
    "Sums",
    "classify",
    "confusion",
    "dpo",
    "no_reference",
    "predict",
    "pretrain",
    "read_reference",
    "reference_log_probs",
    "reward",
    "with_adapters",
    "with_reference",
    "write_reference",
]
__getattr__, __dir__ = on_first_use(__name__)
