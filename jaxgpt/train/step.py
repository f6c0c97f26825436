"""One update: accumulate the objective's sums, divide once, and move unless something is not finite."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.text.batches import Batch
from jaxgpt.train.objectives import Objective, Params, Sums
from jaxgpt.train.state import TrainState

SPIKE_SIGMAS = 6.0


@flax.struct.dataclass
class StepMetrics:
    """What one update has to say.

    Attributes:
        loss: () mean loss of the batch, before the update.
        grad_norm: () global norm of its gradient, before clipping.
        updates: () updates made before this one; the schedule's argument.
        skipped, streak: () as in TrainState, after this update.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    updates: Int[Array, ""]
    skipped: Int[Array, ""]
    streak: Int[Array, ""]


Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    skip_spikes: bool = False,
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
    """

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Sums]:
        sums = objective(params, batch, key)
        return sums.loss, sums

    def gradient(params: Params, batch: Batch, key: Array) -> tuple[Params, Sums]:
        if accumulate == 1:
            return jax.grad(loss, has_aux=True)(params, batch, key)
        leaves, structure = jax.tree.flatten(batch)
        # Row r goes to micro-batch r mod A: rows that lie on one device stay there.
        micro = [x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for x in leaves]

        def add(total: tuple[Params, Sums], numbered: tuple[Array, list[Array]]) -> tuple[tuple[Params, Sums], None]:
            i, part = numbered
            more = jax.grad(loss, has_aux=True)(params, structure.unflatten(part), jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, more), None

        zeros = (jax.tree.map(jnp.zeros_like, params), Sums(loss=jnp.zeros(()), weight=jnp.zeros(())))
        return jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        grads, sums = gradient(state.params, batch, jax.random.fold_in(jax.random.key(seed), state.step))
        grads = jax.tree.map(lambda g: g / sums.weight, grads)
        mean, norm = sums.loss / sums.weight, optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        moved = (optax.apply_updates(state.params, updates), opt_state, jnp.roll(state.losses, -1).at[-1].set(mean))
        good = jnp.isfinite(mean) & jnp.isfinite(norm)
        if skip_spikes:
            # While the window still holds infinities the comparison is False, and nothing is a spike.
            good &= ~(mean > state.losses.mean() + SPIKE_SIGMAS * state.losses.std())
        stayed = (state.params, state.opt_state, state.losses)
        params, opt_state, losses = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, stayed)
        bad = 1 - good.astype(jnp.int32)
        skipped, streak = state.skipped + bad, (state.streak + 1) * bad
        metrics = StepMetrics(mean, norm, state.step - state.skipped, skipped, streak)
        return TrainState(state.step + 1, skipped, streak, losses, params, opt_state), metrics

    return step
