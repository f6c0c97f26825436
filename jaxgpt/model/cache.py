"""The keys and values of the tokens read so far: what the model hands from one decoding step to the next.

It stands beside the model, not beside the decoder, because the model is what reads and writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxgpt.model.config import GPTConfig


@flax.struct.dataclass
class KVCache:
    """A preallocated cache of S slots, filled from the left, the same number of slots in every row.

    Rows of unequal length are padded on the left: slots before `start` hold nothing and are never attended to,
    and a row's positions count from its own `start`.

    There is one buffer a layer, heads before slots, so that a step writes its token in place and each head's
    products read contiguous memory. With a single row the buffers have no axis B: XLA drops an axis of size 1 from
    products, and would copy each buffer in every step of a loop to have it both with and without.

    Attributes:
        key_buffers: per layer, (B, H, S, K), or (H, S, K) for a single row.
        value_buffers: like key_buffers.
        length: () slots filled.
        start: (B,) each row's first slot that holds a token.
        new: nothing has been read into it, so that the first tokens attend to themselves, not to all slots.
    """

    key_buffers: tuple[Float[Array, "*B H S K"], ...]
    value_buffers: tuple[Float[Array, "*B H S K"], ...]
    length: Int[Array, ""]
    start: Int[Array, " B"]
    new: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def empty(
        cls, config: GPTConfig, start: Int[Array, " B"], size: int, dtype: DTypeLike, *, new: bool = True
    ) -> KVCache:
        """Allocate a cache of `size` slots for rows that begin at `start`; not `new` if its slots are filled apart."""
        rows = start.shape if start.shape != (1,) else ()
        shape = (*rows, config.n_head, size, config.head_dim)
        keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layer)) for _ in "kv")
        return cls(keys, values, jnp.zeros((), jnp.int32), start, new)

    @property
    def size(self) -> int:
        """S, the number of slots."""
        return self.key_buffers[0].shape[-2]

    def layer(self, index: int) -> tuple[Float[Array, "B H S K"], Float[Array, "B H S K"]]:
        """Return one layer's keys and values in all slots."""
        keys, values = self.key_buffers[index], self.value_buffers[index]
        return keys.reshape(-1, *keys.shape[-3:]), values.reshape(-1, *values.shape[-3:])

    def positions(self, count: int) -> Int[Array, "B T"]:
        """Positions of the next `count` tokens in each row; 0 for padding."""
        slots = self.length + jnp.arange(count)
        return jnp.maximum(slots - self.start[:, None], 0)

    def seen(self, count: int) -> Bool[Array, "B 1 T S"] | Int[Array, "B T"]:
        """Return the mask of the slots that each of the next `count` tokens may attend to.

        In a new cache these tokens are all that there is, in two segments, a row's own and its padding.
        """
        if self.new:
            return (jnp.arange(count) >= self.start[:, None]).astype(jnp.int32)
        query = self.length + jnp.arange(count)[:, None]
        key = jnp.arange(self.size)
        return ((key <= query) & (key >= self.start[:, None, None]))[:, None]

    def write(self, layer: int, keys: Float[Array, "B H T K"], values: Float[Array, "B H T K"]) -> KVCache:
        """Put one layer's new keys and values into the next T slots; `length` stays for the other layers.

        Past the end XLA would clamp and overwrite the last slots, so callers make sure on the host that T fits.
        """
        return replace(
            self,
            key_buffers=self._with(self.key_buffers, layer, keys),
            value_buffers=self._with(self.value_buffers, layer, values),
        )

    def _with(self, buffers: tuple[Array, ...], layer: int, new: Array) -> tuple[Array, ...]:
        old = buffers[layer]
        new = new.astype(old.dtype).reshape(*old.shape[:-2], *new.shape[-2:])
        updated = jax.lax.dynamic_update_slice_in_dim(old, new, self.length, axis=-2)
        return (*buffers[:layer], updated, *buffers[layer + 1 :])

    def seat(self, row: Int[Array, ""], newcomer: KVCache, *, width: int) -> KVCache:
        """Put the first `width` slots of a cache of one row into a row, to end in the slot where the others end.

        `start` stays; callers make sure on the host that there are `width` slots.
        """

        def put(old: Array, new: Array) -> Array:
            new = new[:, :width].reshape(*(1 for _ in old.shape[:-3]), new.shape[0], width, new.shape[2])
            at = [jnp.asarray(place, jnp.int32) for place in (row, 0, self.length - width, 0)]
            return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), at[-old.ndim :])

        return self._map(put, newcomer)

    def shift(self, slots: Int[Array, ""]) -> KVCache:
        """Move all rows to the left, or by a negative number to the right; positions stay, as `start` moves too."""
        moved = self._map(lambda old: jnp.roll(old, -slots, axis=-2))
        return replace(moved, length=self.length - slots, start=self.start - slots)

    def _map(self, function: Callable[..., Array], *others: KVCache) -> KVCache:
        keys = tuple(map(function, self.key_buffers, *(other.key_buffers for other in others)))
        values = tuple(map(function, self.value_buffers, *(other.value_buffers for other in others)))
        return replace(self, key_buffers=keys, value_buffers=values)
