"""Training: one loop for every objective.

In: a model, its parameters, an objective, and batches as a function of the step.
Out: a state that moves, rows of metrics, and checkpoints from which the run goes on bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.train.config import OptimizerConfig
    from jaxgpt.train.loop import run
    from jaxgpt.train.objectives import pretrain
    from jaxgpt.train.optimizer import adamw
    from jaxgpt.train.state import TrainState, init_params
    from jaxgpt.train.step import make_step

__all__ = ["OptimizerConfig", "TrainState", "adamw", "init_params", "make_step", "pretrain", "run"]
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "OptimizerConfig": "jaxgpt.train.config",
        "TrainState": "jaxgpt.train.state",
        "adamw": "jaxgpt.train.optimizer",
        "init_params": "jaxgpt.train.state",
        "make_step": "jaxgpt.train.step",
        "pretrain": "jaxgpt.train.objectives",
        "run": "jaxgpt.train.loop",
    },
)
