"""One update: accumulate the objective's sums, divide once, and move unless something is not finite."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from jaxgpt import checks
from jaxgpt.devices import platform
from jaxgpt.errors import UsageError
from jaxgpt.mesh import OwnRows
from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.parallel import inside, seed_key, total
from jaxgpt.train.state import TrainState, join

SPIKE_SIGMAS = 6.0


@flax.struct.dataclass
class StepMetrics:
    """The numbers of one update.

    Attributes:
        loss: () mean loss of the batch, before the update.
        grad_norm: () global norm of its gradient, before clipping.
        updates: () updates made before this one; the schedule's argument.
        skipped, streak: () as in TrainState, after this update.
        metrics: the objective's own, each a mean.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    updates: Int[Array, ""]
    skipped: Int[Array, ""]
    streak: Int[Array, ""]
    metrics: Mapping[str, Float[Array, ""]]


Step = Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    skip_spikes: bool = False,
    rows: OwnRows | None = None,
) -> Step:
    """Return the pure function (state, batch) → (state, metrics); jit it with the state donated.

    An update with a non-finite loss or gradient leaves parameters and optimizer as they are.

    Args:
        objective: what to minimise.
        optimizer: what to do with the gradient.
        seed: of dropout; the key of an update is a function of (seed, step, micro-batch).
        accumulate: split each batch into this many micro-batches, whose sums are added before the one division:
            the same update as without, whatever the rows' weights, in less memory.
        skip_spikes: also skip an update whose loss lies more than 6 standard deviations above the mean of the
            last 128 (once there are 128).
        rows: how devices share the batch; None for one of them.

    Raises:
        UsageError: `accumulate` is no number of micro-batches; the step, traced, where it does not divide the rows.
    """
    accumulate = checks.whole("accumulate", accumulate, 1)
    take = partial(gradient, accumulate=accumulate)
    take = partial(take, objective) if rows is None else rows.gradient(take, objective)

    update = optax.with_extra_args_support(optimizer).update

    def move(moving: tuple[Any, Any, Array], grads: Params, mean: Array, norm: Array) -> tuple[Any, Any, Array]:
        params, opt_state, losses = moving
        updates, opt_state = update(grads, opt_state, params, norm=norm)
        return optax.apply_updates(params, updates), opt_state, jnp.roll(losses, -1).at[-1].set(mean)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(seed_key(seed), state.step)
        grads, sums = take(state.params, state.frozen, batch, key)
        mean, norm = sums.loss / sums.weight, optax.tree.norm(grads)
        good = jnp.isfinite(mean) & jnp.isfinite(norm)
        if skip_spikes:
            # While the window still holds infinities the comparison is False, and nothing is a spike.
            good &= ~(mean > state.losses.mean() + SPIKE_SIGMAS * state.losses.std())
        moving = state.params, state.opt_state, state.losses
        params, opt_state, losses = _move_if(good, move, moving, grads, mean, norm)
        bad = 1 - good.astype(jnp.int32)
        skipped, streak = state.skipped + bad, (state.streak + 1) * bad
        metrics = StepMetrics(mean, norm, state.step - state.skipped, skipped, streak, means(sums))
        rest = state.frozen, state.carried
        return TrainState(state.step + 1, skipped, streak, losses, params, opt_state, *rest), metrics

    return step


def _move_if(good: Array, move: Callable[..., Any], moving: Any, *known: Any) -> Any:
    """Return what `move` makes of what moves and is known, or what moves as it is.

    On a CPU by a branch: in it XLA writes moments over the old ones before it reads them for the parameters. Of a
    select it makes three fusions that all read the old moments, and so copies both first. XLA for GPUs copies all
    that moves before a branch, for which it also waits on the host, and fuses the select.
    """
    if platform() == "cpu":
        return jax.lax.cond(good, move, lambda moving, *_: moving, moving, *known)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), move(moving, *known), moving)


def gradient(
    objective: Objective, params: Params, frozen: Params, batch: Any, key: Array | None, *, accumulate: int = 1
) -> tuple[Params, Sums]:
    """Return the gradient of a batch's mean loss by the parameters that are trained, and the objective's sums.

    Where devices have their own rows, the sums are of all, and gradients are still to be added up. Without a key
    nothing is dropped.
    """
    if accumulate == 1:  # dividing the loss takes nothing; dividing the gradient, a pass over all of it
        return jax.grad(_mean_loss, argnums=1, has_aux=True)(objective, params, frozen, batch, key)
    leaves, structure = jax.tree.flatten(batch)
    if (rows := len(leaves[0])) % accumulate:
        raise UsageError(f"accumulate {accumulate} does not divide a batch of {rows} rows")
    # Row r goes to micro-batch r mod A: rows that lie on one device stay there.
    micro = [x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for x in leaves]

    def part(i: Array, leaves: list[Array]) -> tuple[Params, Sums]:
        rows, key_of_part = structure.unflatten(leaves), None if key is None else jax.random.fold_in(key, i)
        return jax.grad(_loss, argnums=1, has_aux=True)(objective, params, frozen, rows, key_of_part)

    numbers = jnp.arange(accumulate)
    shapes = jax.eval_shape(part, numbers[0], [x[0] for x in micro])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    added = jax.lax.scan(lambda before, one: (jax.tree.map(jnp.add, before, part(*one)), None), zeros, (numbers, micro))
    grads, sums = added[0][0], total(added[0][1])
    return jax.tree.map(lambda g: g / sums.weight, grads), sums


def _loss(objective: Objective, params: Params, frozen: Params, batch: Any, key: Array | None) -> tuple[Array, Sums]:
    sums = objective(join(params, frozen), batch, key)
    return sums.loss, sums


def _mean_loss(*args: Any) -> tuple[Array, Sums]:
    loss, sums = _loss(*args)
    sums = total(jax.lax.stop_gradient(sums)) if inside() else sums
    return loss / sums.weight, sums


def means(sums: Sums) -> dict[str, Array]:
    """Return an objective's metrics, each divided by its weight; NaN where there was nothing to measure."""
    return {name: total / weight for name, (total, weight) in sums.metrics.items()}
