"""Causal attention (Vaswani et al. 2017, section 3.2.1) behind one function."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxgpt.errors import UsageError
from jaxgpt.model.attention_kernels import kernels
from jaxgpt.model.linear import again, wide_product

# Finite, so that the rows of padding, which may attend to nothing, stay free of NaN.
NEVER = jnp.finfo(jnp.float32).min

# Queries are taken in blocks, each against the keys up to its own end: half of all scores are never computed.
BLOCKS = 4
SMALLEST_BLOCK = 32


def attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    seen: Bool[Array, "#B #H T S"] | Int[Array, "B T"] | None,
    *,
    scale: float,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    autodiff: bool = False,
) -> Float[Array, "B H T K"]:
    """Return each query's weighted mean of values.

    Scores and softmax are f32 whatever the inputs' dtype.

    Args:
        q, k, v: queries, keys, values.
        seen: which keys a query attends to. None: those up to its own place; numbers of segments: of these, those in
            its own segment; a mask: those where it is True, later ones too.
        scale: factor on the scores.
        dropout_rate: of the attention weights.
        dropout_key: random key; None switches dropout off.
        autodiff: hold all scores, and leave every derivative to JAX.

    Raises:
        UsageError: a mask or segments of another dtype or shape, which would be taken for each other.
    """
    if seen is not None and not _fits(seen, q, k):
        b, h, t, s = *q.shape[:3], k.shape[2]
        raise UsageError(
            f"attention mask {seen.dtype}{list(seen.shape)}: it must be bool[{b} or 1, {h} or 1, {t}, {s}], True where "
            f"a query sees a key, or int[{b}, {t}], numbers of segments"
        )
    if dropout_rate == 0:
        dropout_key = None
    if seen is None or seen.ndim == 2:
        # A symbolic length, which jax.export knows, can't be cut into blocks, nor has it a kernel.
        if dropout_key is None and not autodiff and isinstance(q.shape[2], int):
            return fast(q, k, v, seen, scale)
        seen = causal_mask(q.shape[2], seen)
    scores = wide_product("BHTK,BHSK->BHTS", q, k, autodiff=autodiff) * scale
    weights = jax.nn.softmax(jnp.where(seen, scores, NEVER))
    if dropout_key is not None:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
    return jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v)


def _fits(seen: Array, q: Array, k: Array) -> bool:
    if seen.dtype == bool and seen.ndim == 4:
        rows, heads = (size in (1, full) for size, full in zip(seen.shape, q.shape[:2], strict=False))
        return rows and heads and seen.shape[2:] == (q.shape[2], k.shape[2])
    return jnp.issubdtype(seen.dtype, jnp.integer) and seen.shape == (q.shape[0], q.shape[2])


@flax.struct.dataclass
class AttentionStages:
    """The values attention computes on its way, for those who look inside; of several layers stacked, with L in front.

    Attributes:
        q: (B, H, T, K) queries.
        k, v: (B, H, S, K) keys and values.
        scores: (B, H, T, S) products of queries and keys.
        scaled: (B, H, T, S) scores times the scale, 1/sqrt(K) in GPT-2.
        masked: (B, H, T, S) scaled, and the least f32 where a query does not see a key.
        weights: (B, H, T, S) softmax of the masked scores; each row sums to 1.
        heads: (B, H, T, K) values weighted by these.
        out: (B, T, D) the heads side by side, times W_O where there is one.
    """

    q: Float[Array, "*L B H T K"]
    k: Float[Array, "*L B H S K"]
    v: Float[Array, "*L B H S K"]
    scores: Float[Array, "*L B H T S"]
    scaled: Float[Array, "*L B H T S"]
    masked: Float[Array, "*L B H T S"]
    weights: Float[Array, "*L B H T S"]
    heads: Float[Array, "*L B H T K"]
    out: Float[Array, "*L B T D"]

    @classmethod
    def of(
        cls,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B H S K"],
        v: Float[Array, "B H S K"],
        mask: Bool[Array, "#B #H T S"] | None,
        scale: float,
    ) -> "AttentionStages":
        """Compute them one after another; `out` is the heads side by side."""
        scores = wide_product("BHTK,BHSK->BHTS", q, k)
        scaled = scores * scale
        masked = scaled if mask is None else jnp.where(mask, scaled, NEVER)
        weights = jax.nn.softmax(masked)
        heads = jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v)
        out = heads.transpose(0, 2, 1, 3).reshape(heads.shape[0], heads.shape[2], -1)
        return cls(q, k, v, scores, scaled, masked, weights, heads, out)


def causal_mask(length: int, segment_ids: Int[Array, "B T"] | None) -> Bool[Array, "#B 1 T T"]:
    """Return the mask that lets each token see those up to itself, or of these those in its own segment."""
    mask = jnp.tri(length, dtype=bool)[None]
    if segment_ids is not None:
        mask &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return mask[:, None]


def fast(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
) -> Float[Array, "B H T K"]:
    """Return causal attention by the platform's own kernel where one fits, and else `in_blocks`."""
    ours, others = partial(in_blocks, scale=scale), kernels(q, segment_ids, scale)
    arrays = (q, k, v, segment_ids)
    return jax.lax.platform_dependent(*arrays, default=ours, **others) if others else ours(*arrays)


def in_blocks(q: Array, k: Array, v: Array, segment_ids: Array | None, scale: float) -> Array:
    """Return causal attention, in segments if there are any, by our own means."""
    return causal(q, k, v, scale) if segment_ids is None else segmented(q, k, v, segment_ids, scale)


def _segmented(q: Array, k: Array, v: Array, segment_ids: Array, scale: float) -> Array:
    """Return causal attention in segments, by the same blocks as without them."""
    outs = []
    for block in _blocks(q.shape[2]):
        same = segment_ids[:, block.start : block.stop, None] == segment_ids[:, None, : block.stop]
        weights = jax.nn.softmax(jnp.where(same[:, None], _scores(q, k, block, scale, "BHTS"), NEVER))
        outs.append(jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v[:, :, : block.stop]))
    return jnp.concatenate(outs, 2)


segmented = jax.custom_vjp(_segmented, nondiff_argnums=(4,))
"""Of it, only what it is given is kept for the backward pass, not (B, H, T, T) weights."""


def _segmented_forward(q: Array, k: Array, v: Array, segment_ids: Array, scale: float) -> tuple[Array, Any]:
    return _segmented(q, k, v, segment_ids, scale), (q, k, v, segment_ids)


def _segmented_backward(scale: float, kept: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    *arrays, segment_ids = kept
    # All comes again, and not before it is needed.
    _, pull = jax.vjp(lambda q, k, v: _segmented(q, k, v, segment_ids, scale), *(again(d_out, x) for x in arrays))
    return *pull(d_out), None


segmented.defvjp(_segmented_forward, _segmented_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal(
    q: Float[Array, "B H T K"], k: Float[Array, "B H T K"], v: Float[Array, "B H T K"], scale: float
) -> Float[Array, "B H T K"]:
    """Return plain causal attention, keeping (B, H, T) numbers for the backward pass instead of (B, H, T, T).

    The weights are computed again from the scores' log-sum-exp, as in Dao et al. 2022, section 3.1.
    """
    return _forward(q, k, v, scale)[0]


def _forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    outs, sums = [], []
    for block in _blocks(q.shape[2]):
        scores = _scores(q, k, block, scale, "BHTS")
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v[:, :, : block.stop])
        outs.append((out / total).astype(v.dtype))
        sums.append((top + jnp.log(total))[..., 0])
    out, log_sum = jnp.concatenate(outs, 2), jnp.concatenate(sums, 2)
    return out, (q, k, v, out, log_sum)


def _backward(scale: float, kept: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_sum = kept
    # The scores come again, and not before they are needed.
    q, k, v = (again(d_out, x) for x in (q, k, v))
    length = q.shape[2]
    # The sum over keys in softmax's derivative, taken over K instead.
    inner = (d_out.astype(jnp.float32) * out).sum(-1)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block in _blocks(length):
        seen, rows = slice(0, block.stop), slice(block.start, block.stop)
        rest = ((0, 0), (0, 0), (0, length - block.stop), (0, 0))
        # Keys before queries: so two of the three products that follow need no transposed copy.
        weights = jnp.exp(_scores(q, k, block, scale, "BHST") - log_sum[:, :, None, rows])
        d_rows = d_out[:, :, rows]
        d_weights = jnp.einsum("BHSK,BHTK->BHST", v[:, :, seen], d_rows, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner[:, :, None, rows]) * scale).astype(q.dtype)
        d_q.append(jnp.einsum("BHST,BHSK->BHTK", d_scores, k[:, :, seen]))
        # Over the blocks these are summed in f32, as within one.
        d_k += jnp.pad(jnp.einsum("BHST,BHTK->BHSK", d_scores, q[:, :, rows], preferred_element_type=jnp.float32), rest)
        weights = weights.astype(v.dtype)
        d_v += jnp.pad(jnp.einsum("BHST,BHTK->BHSK", weights, d_rows, preferred_element_type=jnp.float32), rest)
    return jnp.concatenate(d_q, 2), d_k.astype(k.dtype), d_v.astype(v.dtype)


causal.defvjp(_forward, _backward)


def _blocks(length: int) -> list[range]:
    """Cut the queries 0 … T-1 into blocks of one size but for the last."""
    size = max(-(-length // BLOCKS), SMALLEST_BLOCK)
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(q: Array, k: Array, block: range, scale: float, axes: str) -> Array:
    """Return the f32 scores of a block of queries with the keys up to the block's end, as BHTS or BHST."""
    queries, keys = q[:, :, block.start : block.stop], k[:, :, : block.stop]
    scores = wide_product(f"BHTK,BHSK->{axes}", queries, keys) * scale
    seen = jnp.arange(block.start, block.stop)[:, None] >= jnp.arange(block.stop)
    return jnp.where(seen if axes == "BHTS" else seen.T, scores, NEVER)
