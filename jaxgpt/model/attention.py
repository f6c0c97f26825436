"""Causal attention (Vaswani et al. 2017, section 3.2.1) behind one function."""

from functools import partial
from itertools import accumulate
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

# Queries are taken in blocks, each against the keys up to its own end: three eighths of all scores are never computed.
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
        if not autodiff and isinstance(q.shape[2], int):
            others = kernels(q, seen, scale) if dropout_key is None else {}  # which drop nothing
            if not others:
                return in_blocks(q, k, v, seen, scale, dropout_key, dropout_rate)
            return jax.lax.platform_dependent(q, k, v, seen, default=partial(in_blocks, scale=scale), **others)
        seen = causal_mask(q.shape[2], seen)
    scores = wide_product("BHTK,BHSK->BHTS", q, k, autodiff=autodiff) * scale
    weights = jax.nn.softmax(jnp.where(seen, scores, NEVER))
    if dropout_key is not None:
        weights = _drop(weights, jax.random.bernoulli(dropout_key, 1 - dropout_rate, weights.shape), dropout_rate)
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


@partial(jax.custom_vjp, nondiff_argnums=(4, 6))
def in_blocks(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    dropout_key: Array | None = None,
    dropout_rate: float = 0.0,
) -> Float[Array, "B H T K"]:
    """Return causal attention, keeping (B, H, T) numbers for the backward pass instead of (B, H, T, T).

    The weights are computed again from the scores' log-sum-exp, as in Dao et al. 2022, section 3.1, and what dropout
    keeps of them is drawn again from its key.
    """
    return _forward(q, k, v, segment_ids, scale, dropout_key, dropout_rate)[0]


def _forward(
    q: Array, k: Array, v: Array, segment_ids: Array | None, scale: float, key: Array | None, rate: float
) -> tuple[Array, Any]:
    outs, sums = [], []
    for block, stay in zip(_blocks(q.shape[2]), _kept(q, key, rate), strict=True):
        scores = _scores(q, k, segment_ids, block, scale)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        weights = _drop(weights, stay, rate).astype(v.dtype)
        out = jnp.einsum("BHTS,BHSK->BHTK", weights, v[:, :, : block.stop])
        outs.append((out / total).astype(v.dtype))
        sums.append((top + jnp.log(total))[..., 0])
    out, log_sum = jnp.concatenate(outs, 2), jnp.concatenate(sums, 2)
    return out, (q, k, v, segment_ids, key, out, log_sum)


def _backward(scale: float, rate: float, kept: tuple[Any, ...], d_out: Array) -> tuple[Array | None, ...]:
    q, k, v, segment_ids, key, out, log_sum = kept
    # The scores come again, and what was dropped, and not before they are needed.
    q, k, v = (again(d_out, x) for x in (q, k, v))
    if key is not None:
        numbers = again(d_out, jax.random.key_data(key))
        key = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(key))
    length = q.shape[2]
    # The sum over keys in softmax's derivative, taken over K instead.
    inner = (d_out.astype(jnp.float32) * out).sum(-1)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block, stay in zip(_blocks(length), _kept(q, key, rate), strict=True):
        seen, rows = slice(0, block.stop), slice(block.start, block.stop)
        rest = ((0, 0), (0, 0), (0, length - block.stop), (0, 0))
        # Keys before queries: so two of the three products that follow need no transposed copy.
        stay = None if stay is None else stay.swapaxes(2, 3)
        weights = jnp.exp(_scores(q, k, segment_ids, block, scale, keys_first=True) - log_sum[:, :, None, rows])
        d_rows = d_out[:, :, rows]
        d_weights = jnp.einsum("BHSK,BHTK->BHST", v[:, :, seen], d_rows, preferred_element_type=jnp.float32)
        d_scores = weights * (_drop(d_weights, stay, rate) - inner[:, :, None, rows]) * scale
        d_scores, weights = d_scores.astype(q.dtype), _drop(weights, stay, rate).astype(v.dtype)
        d_q.append(jnp.einsum("BHST,BHSK->BHTK", d_scores, k[:, :, seen]))
        # Over the blocks these are summed in f32, as within one.
        d_k += jnp.pad(jnp.einsum("BHST,BHTK->BHSK", d_scores, q[:, :, rows], preferred_element_type=jnp.float32), rest)
        d_v += jnp.pad(jnp.einsum("BHST,BHTK->BHSK", weights, d_rows, preferred_element_type=jnp.float32), rest)
    return jnp.concatenate(d_q, 2), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


in_blocks.defvjp(_forward, _backward)


def _blocks(length: int) -> list[range]:
    """Cut the queries 0 … T-1 into blocks of one size but for the last."""
    size = max(-(-length // BLOCKS), SMALLEST_BLOCK)
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(
    q: Array, k: Array, segment_ids: Array | None, block: range, scale: float, keys_first: bool = False
) -> Array:
    """Return the f32 scores of a block of queries with the keys up to the block's end, as BHTS or BHST."""
    axes = "BHST" if keys_first else "BHTS"
    rows, keys = slice(block.start, block.stop), slice(0, block.stop)
    scores = wide_product(f"BHTK,BHSK->{axes}", q[:, :, rows], k[:, :, keys]) * scale
    seen = (jnp.arange(block.start, block.stop)[:, None] >= jnp.arange(block.stop))[None]
    if segment_ids is not None:
        seen &= segment_ids[:, rows, None] == segment_ids[:, None, keys]
    return jnp.where((seen.swapaxes(1, 2) if keys_first else seen)[:, None], scores, NEVER)


def _kept(q: Array, key: Array | None, rate: float) -> list[Array | None]:
    """Return which weights of each block dropout keeps, as BHTS; None for all. All are drawn at once."""
    blocks = _blocks(q.shape[2])
    if key is None:
        return [None] * len(blocks)
    ends = list(accumulate(len(block) * block.stop for block in blocks))
    drawn = jax.random.bernoulli(key, 1 - rate, (*q.shape[:2], ends[-1]))
    parts = zip(blocks, jnp.split(drawn, ends[:-1], -1), strict=True)
    return [part.reshape(*q.shape[:2], len(block), block.stop) for block, part in parts]


def _drop(x: Array, kept: Array | None, rate: float) -> Array:
    return x if kept is None else jnp.where(kept, x / (1 - rate), 0)
