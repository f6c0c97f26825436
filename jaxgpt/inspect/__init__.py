"""The values a model computes on its way from tokens to predictions.

In: a config, parameters and tokens.
Out: one record of every intermediate value, tables that measure them, and figures that show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.inspect.embeddings import bag_of_words, nearest, principal_components
    from jaxgpt.inspect.figures import (
        plot_attention,
        plot_attention_stages,
        plot_bag_of_words,
        plot_embeddings,
        plot_positions,
        plot_residual_stream,
        plot_tokens,
    )
    from jaxgpt.inspect.heads import ablate_heads, residual_std, without_heads
    from jaxgpt.inspect.power_law import PowerLaw, fit_power_law, plot_scaling
    from jaxgpt.inspect.prediction_figures import plot_logit_lens, plot_next_token, plot_parameters, plot_predictions
    from jaxgpt.inspect.predictions import next_token_table, token_log_probs
    from jaxgpt.inspect.record import Inspection, inspect, logit_lens
    from jaxgpt.inspect.stages import attention_stages
    from jaxgpt.train.metrics import plot_training

__all__ = [
    "Inspection",
    "PowerLaw",
    "ablate_heads",
    "attention_stages",
    "bag_of_words",
    "fit_power_law",
    "inspect",
    "logit_lens",
    "nearest",
    "next_token_table",
    "plot_attention",
    "plot_attention_stages",
    "plot_bag_of_words",
    "plot_embeddings",
    "plot_logit_lens",
    "plot_next_token",
    "plot_parameters",
    "plot_positions",
    "plot_predictions",
    "plot_residual_stream",
    "plot_scaling",
    "plot_tokens",
    "plot_training",
    "principal_components",
    "residual_std",
    "token_log_probs",
    "without_heads",
]
__getattr__, __dir__ = on_first_use(__name__)
