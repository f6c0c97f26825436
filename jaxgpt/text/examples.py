"""Examples: a finite data set's batches as a function of (seed, step), for all that follows pretraining.

As in `batches`, nothing is iterated: an epoch is a permutation that is drawn anew wherever it is needed, so a resumed
run goes on with the rows that an uninterrupted one would have had.
"""

from __future__ import annotations

import flax.struct
import numpy as np
from jax import Array
from jaxtyping import Float, Int


@flax.struct.dataclass
class Labelled:
    """Texts with one label each: numpy arrays as made here, jax arrays once on a device.

    Attributes:
        tokens: (B, T) int32, input ids, padded on the right.
        last: (B,) int32, column of each row's last real token.
        labels: (B,) int32, number of each text's label.
        weights: (B,) f32, each text's weight in the loss; 0 leaves it out.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    last: Int[Array | np.ndarray, " B"]
    labels: Int[Array | np.ndarray, " B"]
    weights: Float[Array | np.ndarray, " B"]


@flax.struct.dataclass
class Pairs:
    """Two answers to each prompt, 0 the chosen one and 1 the rejected, each in a row of its own behind the prompt.

    The pair is the leading axis, so that accumulation and sharding split pairs and never the two halves of one. All
    pairs weigh the same in the loss, but for those whose `weights` are 0 throughout: these only fill a batch up, and
    count for nothing.

    Attributes:
        tokens: (B, 2, T) int32, prompt and answer, padded on the right.
        targets: (B, 2, T) int32, the id that follows each.
        weights: (B, 2, T) f32, 1 where the target belongs to the answer, else 0.
        last: (B, 2) int32, column of the answer's last input: of its last token, which has no target.
        margin: (B,) f32, by how much the chosen answer is to be better; 0 where the data does not say.
        reference: (B, 2) f32, log-probability of each answer under the reference model, summed over its tokens;
            None where there is no reference.
    """

    tokens: Int[Array | np.ndarray, "B 2 T"]
    targets: Int[Array | np.ndarray, "B 2 T"]
    weights: Float[Array | np.ndarray, "B 2 T"]
    last: Int[Array | np.ndarray, "B 2"]
    margin: Float[Array | np.ndarray, " B"]
    reference: Float[Array | np.ndarray, "B 2"] | None = None
