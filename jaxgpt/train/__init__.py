"""Training: one loop for every objective.

In: a model, its parameters, an objective, and batches as a function of the step.
Out: a state that moves, rows of metrics, and checkpoints from which the run goes on bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.train.budget import flops_per_token
    from jaxgpt.train.checkpoint import Checkpoints
    from jaxgpt.train.classification import classify, confusion, predict
    from jaxgpt.train.config import OptimizerConfig, RunConfig
    from jaxgpt.train.loop import run
    from jaxgpt.train.meter import Meter
    from jaxgpt.train.metrics import plot
    from jaxgpt.train.objectives import Objective, Sums, pretrain, with_adapters
    from jaxgpt.train.optimizer import adamw, schedule
    from jaxgpt.train.partial import trains
    from jaxgpt.train.preferences import (
        dpo,
        no_reference,
        read_reference,
        reference_log_probs,
        reward,
        with_reference,
        write_reference,
    )
    from jaxgpt.train.recorder import recording
    from jaxgpt.train.state import TrainState, init_params
    from jaxgpt.train.step import StepMetrics, make_step
    from jaxgpt.train.trainer import Trainer
    from jaxgpt.train.weights import check_tokenizer, load_params, open_model, save_params

__all__ = [
    "Checkpoints",
    "Meter",
    "Objective",
    "OptimizerConfig",
    "RunConfig",
    "StepMetrics",
    "Sums",
    "TrainState",
    "Trainer",
    "adamw",
    "check_tokenizer",
    "classify",
    "confusion",
    "dpo",
    "flops_per_token",
    "init_params",
    "load_params",
    "make_step",
    "open_model",
    "plot",
    "predict",
    "pretrain",
    "recording",
    "no_reference",
    "read_reference",
    "write_reference",
    "reference_log_probs",
    "reward",
    "run",
    "save_params",
    "schedule",
    "trains",
    "with_adapters",
    "with_reference",
]
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "Checkpoints": "jaxgpt.train.checkpoint",
        "Meter": "jaxgpt.train.meter",
        "Objective": "jaxgpt.train.objectives",
        "OptimizerConfig": "jaxgpt.train.config",
        "RunConfig": "jaxgpt.train.config",
        "StepMetrics": "jaxgpt.train.step",
        "Sums": "jaxgpt.train.objectives",
        "TrainState": "jaxgpt.train.state",
        "Trainer": "jaxgpt.train.trainer",
        "adamw": "jaxgpt.train.optimizer",
        "check_tokenizer": "jaxgpt.train.weights",
        "classify": "jaxgpt.train.classification",
        "confusion": "jaxgpt.train.classification",
        "dpo": "jaxgpt.train.preferences",
        "flops_per_token": "jaxgpt.train.budget",
        "init_params": "jaxgpt.train.state",
        "load_params": "jaxgpt.train.weights",
        "make_step": "jaxgpt.train.step",
        "open_model": "jaxgpt.train.weights",
        "plot": "jaxgpt.train.metrics",
        "predict": "jaxgpt.train.classification",
        "pretrain": "jaxgpt.train.objectives",
        "recording": "jaxgpt.train.recorder",
        "no_reference": "jaxgpt.train.preferences",
        "read_reference": "jaxgpt.train.preferences",
        "write_reference": "jaxgpt.train.preferences",
        "reference_log_probs": "jaxgpt.train.preferences",
        "reward": "jaxgpt.train.preferences",
        "run": "jaxgpt.train.loop",
        "save_params": "jaxgpt.train.weights",
        "schedule": "jaxgpt.train.optimizer",
        "trains": "jaxgpt.train.partial",
        "with_adapters": "jaxgpt.train.objectives",
        "with_reference": "jaxgpt.train.preferences",
    },
)
