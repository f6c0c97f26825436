"""Everything that changes during a run, where it lies on the mesh, and how it begins."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core.scope import LazyRng
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.nn.initializers import Initializer, normal, ones, zeros
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int

from jaxgpt.mesh import optimizer_shardings, parameter_shardings, replicated
from jaxgpt.model.atlas import Parameter, parameters, tree_of
from jaxgpt.model.gpt import GPT, initial_std
from jaxgpt.parallel import seed_key

SPIKE_WINDOW = 128
LeafPath = tuple[str, ...]
"""A parameter's place in the tree."""


@no_type_check  # the same tree also holds abstract values or shardings in the place of arrays
@flax.struct.dataclass
class TrainState:
    """With the seed and the data it determines all that follows, bit for bit.

    Attributes:
        step: () updates asked for so far, skipped ones included.
        skipped: () updates skipped so far, for a loss or gradient that was not finite, or a spike.
        streak: () updates skipped in a row, up to now.
        losses: (W,) the losses of the last updates that were made, infinite where there is none yet.
        params: f32 master weights, those that are trained.
        opt_state: the optimizer's.
        frozen: the other weights; they are not part of a checkpoint.
        carried: a tree of what else a stage takes from one update to later ones; empty for most.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    streak: Int[Array, ""]
    losses: Float[Array, " W"]
    params: Any
    opt_state: Any
    frozen: Any
    carried: Any = ()

    @classmethod
    def create(
        cls,
        params: Any,
        optimizer: optax.GradientTransformation,
        trained: Callable[[LeafPath], bool] = lambda path: True,
        carried: Any = (),
    ) -> "TrainState":
        """Begin at step 0 from these parameters, of which those move for whose path `trained` is true."""

        def begin(params: Any, frozen: Any, carried: Any) -> "TrainState":
            zero = jnp.zeros((), jnp.int32)
            losses = jnp.full(SPIKE_WINDOW, jnp.inf, jnp.float32)
            return cls(zero, zero, zero, losses, params, optimizer.init(params), frozen, carried)

        # Compiled, because JAX gives equal scalars one buffer otherwise, and a buffer can't be donated twice.
        return jax.jit(begin)(*split(params, trained), carried)

    @property
    def whole(self) -> Any:
        """All of the model's weights in one tree."""
        return join(self.params, self.frozen)


def split(params: Any, trained: Callable[[LeafPath], bool]) -> tuple[Any, Any]:
    """Return two trees: the leaves for whose path `trained` is true, and the others."""
    moving, others = {}, {}
    for path, leaf in flatten_dict(params).items():
        (moving if trained(path) else others)[path] = leaf
    return unflatten_dict(moving), unflatten_dict(others)


def join(params: Any, frozen: Any) -> Any:
    """Return one tree with the leaves of two."""
    return unflatten_dict({**flatten_dict(params), **flatten_dict(frozen)})


def init_params(model: GPT, *, seed: int, shardings: Any = None) -> Any:
    """Draw a model's initial parameters, the same ones on every mesh; `shardings` says where they are to lie.

    They are those of `model.init`, which as one program would take a minute to compile for 48 layers, and hold several
    copies of all. Here each is drawn by a program of its shape.
    """
    key = seed_key(seed)
    places: dict[LeafPath, Any] = {} if shardings is None else dict(flatten_dict(shardings))

    def draw(parameter: Parameter) -> Array:
        *folders, name = parameter.path
        own = LazyRng.create(key, *folders, 1).as_jax_rng()  # as Flax does for a module's first parameter
        std = initial_std(model.config, residual=parameter.path[-2:] == ("c_proj", "kernel"))
        init = {"scale": ones, "bias": zeros}.get(name) or _normal(std)
        return _drawer(init, parameter.shape, places.get(parameter.path))(own)

    return tree_of(parameters(model.config), draw)


_normal = functools.cache(normal)


@functools.cache
def _drawer(init: Initializer, shape: tuple[int, ...], place: Any) -> Callable[[Array], Array]:
    return jax.jit(partial(init, shape=shape, dtype=jnp.float32), out_shardings=place)


def abstract_state(
    mesh: Mesh,
    parameters: Sequence[Parameter],
    optimizer: optax.GradientTransformation,
    trained: Callable[[LeafPath], bool] = lambda path: True,
    carried: Any = (),
) -> TrainState:
    """Return a state of shapes, dtypes and shardings only: moments lie with their parameters, scalars everywhere."""
    shapes = tree_of(parameters, lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32))
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer, trained, carried), shapes)
    params, frozen = split(parameter_shardings(mesh, parameters), trained)
    whole = jax.tree.map(lambda leaf: _placed(leaf, replicated(mesh)), state)
    moments = optimizer_shardings(mesh, optimizer, split(shapes, trained)[0], params)
    return replace(
        whole,
        params=jax.tree.map(_placed, state.params, params),
        opt_state=jax.tree.map(_placed, state.opt_state, moments),
        frozen=jax.tree.map(_placed, state.frozen, frozen),
    )


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
