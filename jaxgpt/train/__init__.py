"""Training: one loop for every objective.

In: a model, its parameters, an objective, and batches as a function of the step.
Out: a state that moves, and in the run's folder rows of metrics, and checkpoints to go on from bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.train.budget import flops_per_token
    from jaxgpt.train.config import OptimizerConfig, RunConfig, SampleConfig, trains
    from jaxgpt.train.loop import run
    from jaxgpt.train.metrics import plot
    from jaxgpt.train.optimizer import adamw, schedule
    from jaxgpt.train.progress_line import ProgressLine
    from jaxgpt.train.recorder import recording, write_sample
    from jaxgpt.train.state import TrainState, init_params
    from jaxgpt.train.step import StepMetrics, make_step
    from jaxgpt.train.trainer import Trainer, clear_errors

__all__ = [
    "OptimizerConfig",
    "ProgressLine",
    "RunConfig",
    "SampleConfig",
    "StepMetrics",
    "TrainState",
    "Trainer",
    "adamw",
    "clear_errors",
    "flops_per_token",
    "init_params",
    "make_step",
    "plot",
    "recording",
    "run",
    "schedule",
    "trains",
    "write_sample",
]
__getattr__, __dir__ = on_first_use(__name__)
