"""The same run in both: equal initial weights, batches and recipe must come to the same validation loss."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from benchmarks.timing import apart, last
from benchmarks.train import CPU, train_ours, train_pytorch
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train.loop import make_evaluate

# Rounding differs from the first update on, and a run amplifies it; runs that differ in their seed are further apart.
ALLOWED = 0.03


@dataclass(frozen=True)
class Quality:
    """How the runs came out.

    Attributes:
        updates: in each.
        ours, pytorch: mean loss over the same fixed validation batches.
    """

    updates: int
    ours: float
    pytorch: float

    @property
    def passed(self) -> bool:
        return abs(self.ours - self.pytorch) <= ALLOWED  # False for NaN

    def __str__(self) -> str:
        return (
            f"quality: validation loss after {self.updates} updates {self.ours:.4f}, PyTorch's {self.pytorch:.4f}; "
            f"they may differ by {ALLOWED}: {'pass' if self.passed else 'FAIL'}"
        )


def compare(updates: int) -> Quality:
    """Train the small model by the defaults of `train.py`, ours and PyTorch's one after another."""
    flags = replace(CPU, max_iters=updates)
    return Quality(updates, apart(_ours, flags), apart(_pytorch, flags))


def _ours(flags: PretrainConfig) -> float:
    stage, states = train_ours(flags)
    params = last(states, flags.max_iters).params
    return make_evaluate(stage.objective())(params, stage.eval_batches())["loss"]


def _pytorch(flags: PretrainConfig) -> float:
    import torch

    from benchmarks.torch_step import as_tensors

    stage, model, losses = train_pytorch(flags)
    last(losses, flags.max_iters)
    with torch.inference_mode():
        return statistics.fmean(model(*as_tensors(batch)).item() for batch in stage.eval_batches())
