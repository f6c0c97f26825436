"""PPO's outer loop as a generator: roll out, then epochs of the same compiled step over what that yielded.

Like `jaxgpt.train.loop.run`, but one item an iteration: the caller logs, saves, evaluates and may stop in between,
and a run that goes on from there is, bit for bit, one that was never interrupted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.objectives.base import Params
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.experience import minibatches
from jaxgpt.rl.kl import next_coefficient
from jaxgpt.rl.rollout import Rollout
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import Step, StepMetrics


def run_ppo(
    step: Step,
    state: TrainState,
    rollout: Callable[[Params, float, int], Rollout],
    config: PPOConfig,
    *,
    seed: int,
    until: int,
    put: Callable[[Any], Any] = lambda batch: batch,
    policy: Callable[[Params], Params] = lambda whole: whole,
    watch: Callable[[int, Rollout], None] = lambda done, rollout: None,
) -> Iterator[tuple[int, TrainState, StepMetrics]]:
    """Yield (iterations done, state, metrics) after each iteration, up to `until`.

    The metrics are means over the iteration's updates, and the rollout's. A yielded state is good until the next one
    is asked for, which takes over its memory.

    Args:
        step: a compiled step of the objective `ppo`.
        state: where to begin; its own step count says with which iteration. It carries what `carried` says.
        rollout: (the policy's parameters, KL coefficient, iteration) → what to learn from; see `Rollouts`.
        config: what is asked for.
        seed: of the order in which responses are gone through.
        until: iterations in the whole run.
        put: where a minibatch is to lie on the devices.
        policy: all of a state's weights → the policy's parameters, where they are not the same.
        watch: called with (the iteration that is being done, from 1, its rollout), to show samples.

    Raises:
        UsageError: the state lies within an iteration, so it is another config's.
        RunError: the rollout's.
    """
    done, over = divmod(int(state.step), config.updates)
    if over:
        raise UsageError(
            f"step {int(state.step)} lies within an iteration of {config.epochs} epochs x {config.minibatches}"
            " minibatches; go on with the epochs and batches that the run began with"
        )
    target = config.kl_target
    while done < until:
        found = rollout(policy(state.whole), config.kl_coef if target is None else float(state.carried), done)
        watch(done + 1, found)
        seen = []
        for batch in minibatches(found.experience, config, seed=seed, iteration=done):
            state, metrics = step(state, put(batch))
            seen.append(metrics)
        if target is not None:
            how = {"target": target, "horizon": config.horizon, "responses": config.rollout_size}
            state = replace(state, carried=next_coefficient(state.carried, found.metrics["kl"], **how))
        done += 1
        yield done, state, _summary(seen, found.metrics)


def carried(config: PPOConfig) -> Any:
    """Return what a state has to carry at the beginning of a run: the KL coefficient, if it adapts."""
    return () if config.kl_target is None else np.float32(config.kl_coef)


def _summary(updates: Sequence[StepMetrics], rollout: Mapping[str, float]) -> StepMetrics:
    """Return one record for an iteration: means, and the counts after its last update."""
    loss, norm, means = jax.tree.map(
        lambda *x: jnp.stack(x).mean(), *((m.loss, m.grad_norm, m.metrics) for m in updates)
    )
    metrics = {**means, **{name: jnp.float32(value) for name, value in rollout.items()}}
    return replace(updates[-1], loss=loss, grad_norm=norm, metrics=metrics)
