"""The training loop as a generator: it moves the state; the caller logs, saves, evaluates and may stop."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.progress import Compiled
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import Step, StepMetrics, means


def run(
    step: Step, state: TrainState, batches: Callable[[int], Any], *, until: int
) -> Iterator[tuple[int, TrainState, StepMetrics]]:
    """Yield (updates done, state, metrics) after each update, up to `until`.

    Results are yielded while the device, if it is no CPU, still computes them: read a metric only when it is needed. A
    yielded state is good until the next one is asked for, which takes over its memory.

    Args:
        step: a compiled step.
        state: where to begin; its own step count says with which batch.
        batches: a function of the number of updates done. The next batch is made while the device works.
        until: updates in the whole run.
    """
    done = int(state.step)
    batch = batches(done) if done < until else None
    while batch is not None:
        state, metrics = step(state, batch)
        done += 1
        batch = batches(done) if done < until else None
        yield done, state, metrics


def make_evaluate(objective: Objective) -> Callable[[Params, Iterable[Any]], dict[str, float]]:
    """Return a function (parameters, batches) → means over all of them, by one compiled call per batch.

    The means are "loss", and the objective's own metrics by their names.
    """
    return partial(_evaluate, Compiled("the evaluation", jax.jit(lambda params, batch: objective(params, batch, None))))


def _evaluate(sums: Callable[[Params, Any], Sums], params: Params, batches: Iterable[Any]) -> dict[str, float]:
    added = []
    for batch in batches:
        added.append(sums(params, batch))
        jax.block_until_ready(added[-3:][0])  # no more than three under way, so that who counts batches is not ahead
    total = jax.tree.map(lambda *parts: jnp.stack(parts).sum(), *added)
    found = {"loss": total.loss / total.weight, **means(total)}
    return {name: float(value) for name, value in found.items()}
