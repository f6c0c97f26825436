"""What a stage trains: all that differs from one stage to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxgpt.model.atlas import Parameter
from jaxgpt.model.config import GPTConfig
from jaxgpt.train.objectives import Objective
from jaxgpt.train.state import LeafPath, TrainState
from jaxgpt.train.step import Step, StepMetrics


@dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
        config: the model's.
        parameters: all that the objective reads.
        begin: shardings of these → their values at step 0; what is not trained, also when a run is resumed.
        objective: what is minimised.
        batches: updates done → the next update's batch, this process's rows of it. A batch is a record with the rows
            first in every array, and `tokens` among them.
        evaluation: index → one of the fixed batches on which the objective is evaluated.
        evaluations: how many of these there are.
        moves: for which paths a parameter is trained.
        counted: whether an update's arithmetic is that of next tokens over all of the model, which is known.
        outer: an outer loop in the place of one that takes batch after batch, which then only show their shape.
    """

    config: GPTConfig
    parameters: Sequence[Parameter]
    begin: Callable[[Any], Any]
    objective: Objective
    batches: Callable[[int], Any]
    evaluation: Callable[[int], Any]
    evaluations: int
    moves: Callable[[LeafPath], bool] = lambda path: True
    counted: bool = False
    outer: OuterLoop | None = None


@dataclass(frozen=True)
class OuterLoop:
    """How iterations follow one another where one is more than an update, as in PPO.

    Attributes:
        run: (compiled step, state, iterations in the whole run) → what `jaxgpt.train.loop.run` yields, an iteration at
            a time.
        evaluate: all weights → means by their names; "loss" is among them, the lower the better.
        updates: in an iteration.
        carried: what the state carries from one update to later ones, at the beginning.
    """

    run: Callable[[Step, TrainState, int], Iterator[tuple[int, TrainState, StepMetrics]]]
    evaluate: Callable[[Any], dict[str, float]]
    updates: int
    carried: Any = ()
