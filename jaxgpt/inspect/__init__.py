"""The values a model computes on its way from tokens to predictions.

In: a config, parameters and tokens.
Out: one record of every intermediate value, tables that measure them, and figures that show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.inspect.embeddings import nearest, principal_components
    from jaxgpt.inspect.heads import ablate_heads, residual_std, without_heads
    from jaxgpt.inspect.predictions import next_token_table, token_log_probs
    from jaxgpt.inspect.record import Inspection, inspect, logit_lens
    from jaxgpt.inspect.stages import attention_stages

__all__ = [
    "Inspection",
    "ablate_heads",
    "attention_stages",
    "inspect",
    "logit_lens",
    "nearest",
    "next_token_table",
    "principal_components",
    "residual_std",
    "token_log_probs",
    "without_heads",
]
__getattr__, __dir__ = on_first_use(__name__)
