"""The tables of tokens and positions."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxgpt.model.matrix import DecodingMatrix, stored


class Embed(nn.Module):
    """A table of vectors, with parameters named as `nn.Embed`'s; an index outside gives NaN.

    Attributes:
        count, features: V and D.
        dtype: of the vectors that are looked up.
        embedding_init: of the table.
    """

    count: int
    features: int
    dtype: DTypeLike
    embedding_init: Initializer

    def setup(self) -> None:
        self.embedding = stored(self, "embedding", self.embedding_init, (self.count, self.features))

    def __call__(self, index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.embedding
        found = table.rows(index) if isinstance(table, DecodingMatrix) else jnp.take(table, index, axis=0)
        return found.astype(self.dtype)
