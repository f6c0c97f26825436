"""Everything that changes during a run, where it lies on the mesh, and how it begins."""

from dataclasses import replace
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int

from jaxgpt.mesh import optimizer_shardings, parameter_shardings, replicated
from jaxgpt.model.layers import GPT

SPIKE_WINDOW = 128


@no_type_check  # the same tree also holds abstract values or shardings in the place of arrays
@flax.struct.dataclass
class TrainState:
    """With the seed and the data it determines all that follows, bit for bit.

    Attributes:
        step: () updates asked for so far, skipped ones included.
        skipped: () updates skipped so far, for a loss or gradient that was not finite, or a spike.
        streak: () updates skipped in a row, up to now.
        losses: (W,) the losses of the last updates that were made, infinite where there is none yet.
        params: f32 master weights.
        opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    streak: Int[Array, ""]
    losses: Float[Array, " W"]
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """Begin at step 0 from these parameters."""

        def begin(params: Any) -> "TrainState":
            zero = jnp.zeros((), jnp.int32)
            losses = jnp.full(SPIKE_WINDOW, jnp.inf, jnp.float32)
            return cls(zero, zero, zero, losses, params, optimizer.init(params))

        # Compiled, because JAX gives equal scalars one buffer otherwise, and a buffer can't be donated twice.
        return jax.jit(begin)(params)


def init_params(model: GPT, *, seed: int, shardings: Any = None) -> Any:
    """Draw a model's initial parameters, the same ones on every mesh; `shardings` says where they are to lie."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(lambda key: model.init(key, tokens)["params"], out_shardings=shardings)(jax.random.key(seed))


def abstract_state(mesh: Mesh, model: GPT, optimizer: optax.GradientTransformation) -> TrainState:
    """Return a state of shapes, dtypes and shardings only: moments lie with their parameters, scalars everywhere."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), shapes)
    params = parameter_shardings(mesh, model.config)

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    whole = jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), state)
    return replace(
        whole,
        params=jax.tree.map(place, state.params, params),
        opt_state=jax.tree.map(place, state.opt_state, optimizer_shardings(mesh, optimizer, shapes, params)),
    )
