"""Attention from its simplest form to GPT-2's, in one function (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxgpt.errors import UsageError
from jaxgpt.model.attention import AttentionStages, causal_mask


def attention_stages(
    x: Float[Array | np.ndarray, "T D"],
    w_q: Float[Array | np.ndarray, "D D"] | None = None,
    w_k: Float[Array | np.ndarray, "D D"] | None = None,
    w_v: Float[Array | np.ndarray, "D D"] | None = None,
    w_o: Float[Array | np.ndarray, "D D"] | None = None,
    *,
    n_head: int = 1,
    scaled: bool = False,
    causal: bool = False,
) -> AttentionStages:
    """Return attention on T embeddings by its stages, each with an axis B of size 1.

    Each argument climbs one step of the ladder:

        attention_stages(x)                                     softmax(x xᵀ) x: scores are symmetric
        attention_stages(x, w_q, w_k)                           with queries and keys they are not
        attention_stages(x, w_q, w_k, scaled=True)              softmax stays soft however wide the heads are
        attention_stages(x, w_q, w_k, …, causal=True)           no token sees a later one
        attention_stages(x, w_q, w_k, w_v, …)                   what is said is another thing than what is asked for
        attention_stages(x, w_q, w_k, w_v, …, n_head=4)         several at once, each in D/4 dimensions
        attention_stages(x, w_q, w_k, w_v, w_o, …, n_head=4)    whose results a last matrix mixes: GPT-2's

    Args:
        x: embeddings.
        w_q, w_k, w_v, w_o: matrices, multiplied from the right; None leaves a step out.
        n_head: H, of which D is a multiple.
        scaled: divide scores by sqrt(K).
        causal: let no query see later keys.

    Raises:
        UsageError: D is not a multiple of H.
    """
    length, width = x.shape
    if n_head < 1 or width % n_head:
        raise UsageError(f"n_head is {n_head}; the width of {width} must be a multiple of it")
    q, k, v = (
        jnp.asarray(x if w is None else x @ w).reshape(1, length, n_head, width // n_head).swapaxes(1, 2)
        for w in (w_q, w_k, w_v)
    )
    mask = causal_mask(length, None) if causal else None
    stages = AttentionStages.of(q, k, v, mask, (width // n_head) ** -0.5 if scaled else 1.0)
    return stages if w_o is None else replace(stages, out=jnp.matmul(stages.out, w_o))
