"""Every intermediate value of a model on some tokens, by one call."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.model.attention import AttentionStages
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT, applied
from jaxgpt.model.quantized import check_params


@flax.struct.dataclass
class Inspection:
    """A model's values on B rows of T tokens, in the order in which they are computed.

    Each layer's values are stacked over an axis L in front. Rows shorter than T are padded behind, with values that
    mean nothing; causal attention keeps them from all others.

    Attributes:
        tokens: (B, T) ids.
        lengths: (B,) tokens of each row.
        token_embeddings: (B, T, D) rows of the token table.
        position_embeddings: (B or 1, T, D) rows of the position table.
        resid_pre: (L, B, T, D) the residual stream before each block; that of the first is the sum of both embeddings.
        attention: each layer's attention by its stages, of shapes as in `AttentionStages`, with L in front; `out` is
            what attention adds to the stream.
        resid_mid: (L, B, T, D) the stream between attention and feed-forward network.
        mlp_out: (L, B, T, D) what the feed-forward network adds to it.
        resid_final: (B, T, D) the stream behind the last block.
        final_norm: (B, T, D) that, normalised, as the head reads it.
        logits: (B, T, V) of each next token, f32.
        scores: (B, T, N) of the labels, f32; None for a model without them.
        lens: (L + 1, B, T, V) the logits that the head would read off the stream before each block and behind the last
            (the logit lens, nostalgebraist 2020); None if not asked for.
        cache: with these tokens added; None without one.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    token_embeddings: Float[Array, "B T D"]
    position_embeddings: Float[Array, "#B T D"]
    resid_pre: Float[Array, "L B T D"]
    attention: AttentionStages
    resid_mid: Float[Array, "L B T D"]
    mlp_out: Float[Array, "L B T D"]
    resid_final: Float[Array, "B T D"]
    final_norm: Float[Array, "B T D"]
    logits: Float[Array, "B T V"]
    scores: Float[Array, "B T N"] | None
    lens: Float[Array, "M B T V"] | None
    cache: KVCache | None


def inspect(
    config: GPTConfig,
    params: Any,
    tokens: checks.IdLists,
    *,
    cache: KVCache | None = None,
    attention_mask: Bool[Array | np.ndarray, "#B #H T T"] | None = None,
    lens: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Inspection:
    """Return all that a model computes on some tokens.

    The record holds all scores of all heads, 4 L B H T S numbers, and with `lens` (L + 1) B T V logits: of GPT-2 on 100
    tokens 23 MB and 261 MB.

    Args:
        config, params: the model.
        tokens: lists of ids, ragged or not, or an array (B, T).
        cache: earlier tokens' keys and values; then rows are of one length, and S counts the cache's slots.
        attention_mask: see `GPT`; then rows are of one length.
        lens: compute the logit lens too.
        dtype: of activations.

    Raises:
        UsageError: an id that the model has not, an empty row, one that is longer than the context, or a mask that
            doesn't fit.
    """
    checks.instance("config", config, GPTConfig, "a GPTConfig, as load_pretrained gives it with the parameters")
    check_params(config, params)
    rows = checks.rows("tokens", tokens)
    lengths = np.asarray([len(row) for row in rows], np.int32)
    if not len(rows) or not lengths.all():
        raise UsageError("tokens: there are none to look at; each row must have one or more")
    filled = 0 if cache is None else int(cache.length)
    if filled + max(lengths) > config.n_positions:
        raise UsageError(
            f"tokens: a row of {max(lengths)}" + (f" behind {filled} in the cache" if filled else "")
            + f" is longer than the model's context of {config.n_positions}"
        )  # fmt: skip
    for row, ids in enumerate(rows):
        checks.below(f"tokens: row {row}", ids, config.vocab_size)
    if cache is not None and (len(set(lengths)) > 1 or filled + max(lengths) > cache.size):
        raise UsageError(f"tokens: with a cache, rows must be of one length and fit its {cache.size} slots")
    if attention_mask is not None and (cache is not None or len(set(lengths)) > 1):
        raise UsageError("attention_mask: rows must be of one length, and without a cache")
    padded = np.zeros((len(rows), max(lengths)), np.int32)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    model = GPT(config, jnp.dtype(checks.floating("dtype", dtype)))
    mask = None if attention_mask is None else jnp.asarray(attention_mask)
    return _inspect(model, params, jnp.asarray(padded), jnp.asarray(lengths), cache, mask, lens=lens)


def logit_lens(config: GPTConfig, params: Any, stream: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Return the logits that the model's head would read off the residual stream, at any of its places."""
    return _read_off(GPT(config), params, stream)


@partial(jax.jit, static_argnames=("model", "lens"))
def _inspect(
    model: GPT, params: Any, tokens: Array, lengths: Array, cache: KVCache | None, mask: Array | None, *, lens: bool
) -> Any:
    apply = applied(model, params)
    how = {"method": "hidden", "mutable": ["intermediates"]}
    (hidden, cache), left = apply(tokens, cache, attention_mask=mask, **how)
    # `sow` keeps a tuple of what each call has left at a name; here there was one call.
    found = jax.tree.map(lambda values: values[0], left["intermediates"], is_leaf=lambda x: isinstance(x, tuple))
    blocks = [found[f"h_{layer}"] for layer in range(model.config.n_layer)]
    block = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    streams = [*block["resid_pre"], found["resid_final"]]
    return Inspection(
        tokens=tokens,
        lengths=lengths,
        token_embeddings=found["token_embeddings"],
        position_embeddings=found["position_embeddings"],
        resid_pre=block["resid_pre"],
        attention=block["attn"]["stages"],
        resid_mid=block["resid_mid"],
        mlp_out=block["mlp"]["out"],
        resid_final=found["resid_final"],
        final_norm=hidden,
        logits=apply(hidden, method="logits"),
        scores=None if model.config.labels is None else apply(hidden, method="scores"),
        lens=jnp.stack([_read_off(model, params, stream) for stream in streams]) if lens else None,
        cache=cache,
    )


@partial(jax.jit, static_argnames="model")
def _read_off(model: GPT, params: Any, stream: Array) -> Any:
    apply = applied(model, params)
    return apply(apply(stream, method="final_norm"), method="logits")
