"""GPT-2 as a pure function of (parameters, tokens, cache): the block, its parts, and the model around them.

Shapes are written in the package's alphabet: B batch, T query time, S key time, D embed, H heads, K head dim,
F mlp, V vocab, L layers, N labels. The model knows no optimizer, loss, sharding or adapter.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxgpt.errors import UsageError
from jaxgpt.model.activations import ACTIVATIONS, FUNCTIONS
from jaxgpt.model.attention import AttentionStages, attention, causal_mask
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.linear import Embed, Linear, wide_product
from jaxgpt.model.norm import LayerNorm
from jaxgpt.model.quantized import DecodingMatrix
from jaxgpt.parallel import FSDP, keep_all_but_weights, size, split_thirds


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) with a language-modelling head and, if the config has labels, one that scores.

    Parameters are a plain tree with one leaf per layer and role, named as in HF and listed in
    `jaxgpt.model.atlas`. They are stored in f32 and cast to `dtype` where they are used.

    `jax.export` takes symbolic numbers of rows and tokens, with the constraint that tokens are at most `n_positions`.
    With the collection "intermediates" mutable, as Linen has it, blocks leave there what they compute on the way, which
    `jaxgpt.inspect` makes a record of.

    Attributes:
        config: the architecture.
        dtype: of activations and matrix products; layer-norm statistics, attention scores and logits stay f32.
        remat: recompute each block's activations in the backward pass instead of storing them.
        autodiff: plain autodiff instead of the hand-written backward passes, which are faster and need less memory but
            allow no forward mode: with this `jax.jvp`, `jacfwd`, `linearize` and Hessians work.
    """

    config: GPTConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    autodiff: bool = False

    def setup(self) -> None:
        config = self.config
        init = normal(initial_std(config))
        self.wte = Embed(config.vocab_size, config.n_embd, self.dtype, init)
        if config.position_embedding == "learned":
            self.wpe = Embed(config.n_positions, config.n_embd, self.dtype, init)
        self.drop = nn.Dropout(config.embd_pdrop)
        # Argument 4 of Block.__call__, `deterministic`, is a Python bool that tracing must not touch.
        block = Block
        if self.remat or size(FSDP) > 1:
            policy = None if self.remat else keep_all_but_weights
            block = nn.remat(Block, static_argnums=(4,), policy=policy)
        self.h = [block(config, layer, self.dtype, self.autodiff) for layer in range(config.n_layer)]
        if config.norm_position == "pre":
            self.ln_f = layer_norm(config, self.dtype, self.autodiff)
        if not config.tie_word_embeddings:
            self.lm_head = Embed(config.vocab_size, config.n_embd, self.dtype, init)
        if config.labels is not None:
            self.score = self.param("score", init, (len(config.labels), config.n_embd), jnp.float32)

    def __call__(
        self,
        tokens: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        *,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        attention_mask: Bool[Array, "#B #H T T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], KVCache | None]:
        """Return the logits of each next token in f32, and the cache with these tokens added.

        Token ids and positions must lie inside their tables: an id outside gives NaN, silently. So callers check
        on the host.

        Args:
            tokens: ids; None with `inputs_embeds`.
            cache: earlier tokens' keys and values. With a cache, positions and masks follow from it.
            inputs_embeds: in the place of token embeddings; positions are added to them.
            positions: of each token; None for 0 … T-1.
            segment_ids: tokens attend only to their own segment: documents packed into one row, or padding.
            attention_mask: True where a query (T, first) attends to a key, which may be a later one: a prefix, a tree.
                It stands for causality and segments, and holds all scores in memory, as `autodiff` does.
            deterministic: no dropout; with False, `apply` needs `rngs={"dropout": key}`.

        Raises:
            UsageError: both or neither of tokens and inputs_embeds, or a mask of another dtype or shape.
        """
        x, cache = self.hidden(
            tokens,
            cache,
            inputs_embeds=inputs_embeds,
            positions=positions,
            segment_ids=segment_ids,
            attention_mask=attention_mask,
            deterministic=deterministic,
        )
        return self.logits(x), cache

    def hidden(
        self,
        tokens: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        *,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        attention_mask: Bool[Array, "#B #H T T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return the hidden states that the heads read, with `__call__`'s arguments."""
        given = tokens if inputs_embeds is None else inputs_embeds
        if given is None or (tokens is not None and inputs_embeds is not None):
            raise UsageError("pass either tokens or inputs_embeds")
        count = given.shape[1]
        if cache is not None:
            if not (positions is segment_ids is attention_mask is None):
                raise ValueError("with a cache, positions, segments and masks follow from it; pass only tokens")
            positions, seen = cache.positions(count), cache.seen(count)
        else:
            if segment_ids is not None and attention_mask is not None:
                raise UsageError("segment_ids: not with attention_mask, which says by itself what each query sees")
            seen = segment_ids if attention_mask is None else attention_mask
            if positions is None:
                if count > self.config.n_positions:
                    raise ValueError(f"rows of {count} tokens, but n_positions is {self.config.n_positions}")
                positions = jnp.arange(count)[None]
        x = self.drop(self.embed(given, positions), deterministic=deterministic)
        for block in self.h:
            x, cache = block(x, seen, cache, deterministic)
        self.sow("intermediates", "resid_final", x)
        if cache is not None:
            cache = replace(cache, length=cache.length + count, new=False)
        return self.final_norm(x), cache

    def final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return hidden states as the heads read them, from the residual stream behind a block."""
        return self.ln_f(x) if self.config.norm_position == "pre" else x

    def embed(
        self, tokens: Int[Array, "B T"] | Float[Array, "B T D"], positions: Int[Array, "#B T"]
    ) -> Float[Array, "B T D"]:
        """Return the sum of position embeddings and the tokens', or what stands in their place."""
        words = self.wte(tokens) if tokens.ndim == 2 else tokens.astype(self.dtype)
        if self.config.position_embedding == "learned":
            places = self.wpe(positions)
        else:
            words = words * self.config.n_embd**0.5
            places = jnp.asarray(sinusoids(self.config.n_positions, self.config.n_embd), self.dtype)[positions]
        self.sow("intermediates", "token_embeddings", words)
        self.sow("intermediates", "position_embeddings", places)
        return words + places

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return the next token's logits from hidden states, accumulated in f32."""
        head = self.head()
        if isinstance(head, DecodingMatrix):
            return head.product(x)
        return wide_product("BTD,VD->BTV", x, head.astype(self.dtype), autodiff=self.autodiff)

    def head(self) -> Float[Array, "V D"] | DecodingMatrix:
        """Return the matrix that makes logits of hidden states, as the parameters hold it."""
        table = (self.wte if self.config.tie_word_embeddings else self.lm_head).embedding
        return table if isinstance(table, DecodingMatrix) else jnp.asarray(table)

    def scores(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N"]:
        """Return a score for each of the config's labels from hidden states, in f32."""
        return wide_product("BTD,ND->BTN", x, self.score.astype(self.dtype), autodiff=self.autodiff)


def applied(model: GPT, params: Any) -> Any:
    """Return `model.apply` with these parameters. Flax gives it one type of result, but that depends on the method."""
    return partial(model.apply, {"params": params})


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each in a residual branch with a layer norm."""

    config: GPTConfig
    layer: int
    dtype: DTypeLike = jnp.float32
    autodiff: bool = False

    def setup(self) -> None:
        self.ln_1 = layer_norm(self.config, self.dtype, self.autodiff)
        self.attn = Attention(self.config, self.layer, self.dtype, self.autodiff)
        self.ln_2 = layer_norm(self.config, self.dtype, self.autodiff)
        self.mlp = MLP(self.config, self.dtype, self.autodiff)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seen: Bool[Array, "#B #H T S"] | Int[Array, "B T"] | None,
        cache: KVCache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        self.sow("intermediates", "resid_pre", x)
        if self.config.norm_position == "post":
            a, cache = self.attn(x, seen, cache, deterministic)
            x = self.ln_1(x + a)
            self.sow("intermediates", "resid_mid", x)
            return self.ln_2(x + self.mlp(x, deterministic)), cache
        a, cache = self.attn(self.ln_1(x), seen, cache, deterministic)
        x = x + a
        self.sow("intermediates", "resid_mid", x)
        return x + self.mlp(self.ln_2(x), deterministic), cache


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    config: GPTConfig
    layer: int
    dtype: DTypeLike = jnp.float32
    autodiff: bool = False

    def setup(self) -> None:
        self.c_attn = dense(self.config, 3 * self.config.n_embd, self.dtype, autodiff=self.autodiff, thirds=True)
        self.c_proj = dense(self.config, self.config.n_embd, self.dtype, residual=True, autodiff=self.autodiff)
        self.drop = nn.Dropout(self.config.resid_pdrop)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seen: Bool[Array, "#B #H T S"] | Int[Array, "B T"] | None,
        cache: KVCache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config = self.config
        # c_attn's outputs are q, k and v in thirds, and in each third the heads one after another.
        q, k, v = (
            third.reshape(*x.shape[:2], config.n_head, config.head_dim).swapaxes(1, 2)
            for third in split_thirds(self.c_attn(x))
        )
        if cache is not None:
            cache = cache.write(self.layer, k, v)
            if not cache.new:
                k, v = (x.astype(self.dtype) for x in cache.layer(self.layer))
        drops = config.attn_pdrop > 0 and not deterministic
        heads = attention(
            q,
            k,
            v,
            seen,
            scale=score_scale(config, self.layer),
            dropout_rate=config.attn_pdrop,
            dropout_key=self.make_rng("dropout") if drops else None,
            autodiff=self.autodiff,
        )
        out = self.c_proj(heads.transpose(0, 2, 1, 3).reshape(x.shape))
        if self.is_mutable_collection("intermediates"):
            mask = seen if seen is not None and seen.ndim == 4 else causal_mask(x.shape[1], seen)
            stages = AttentionStages.of(q, k, v, mask, score_scale(config, self.layer))
            self.sow("intermediates", "stages", replace(stages, out=out))
        return self.drop(out, deterministic=deterministic), cache


class MLP(nn.Module):
    """The feed-forward network of one layer."""

    config: GPTConfig
    dtype: DTypeLike = jnp.float32
    autodiff: bool = False

    def setup(self) -> None:
        self.c_fc = dense(self.config, self.config.inner_dim, self.dtype, autodiff=self.autodiff)
        self.c_proj = dense(self.config, self.config.n_embd, self.dtype, residual=True, autodiff=self.autodiff)
        self.drop = nn.Dropout(self.config.resid_pdrop)

    def __call__(self, x: Float[Array, "B T D"], deterministic: bool) -> Float[Array, "B T D"]:
        x = (FUNCTIONS if self.autodiff else ACTIVATIONS)[self.config.activation_function](self.c_fc(x))
        out = self.c_proj(x)
        self.sow("intermediates", "out", out)
        return self.drop(out, deterministic=deterministic)


def dense(
    config: GPTConfig,
    features: int,
    dtype: DTypeLike,
    *,
    residual: bool = False,
    autodiff: bool = False,
    thirds: bool = False,
) -> Linear:
    """Make a linear layer."""
    init = normal(initial_std(config, residual=residual))
    return Linear(features, config.bias, dtype, init, autodiff, 0 if residual else 1, thirds)


def initial_std(config: GPTConfig, *, residual: bool = False) -> float:
    """Return with what deviation a matrix is drawn: projections into the residual stream smaller, by 1/sqrt(2 L)."""
    return config.initializer_range / ((2 * config.n_layer) ** 0.5 if residual else 1)


def layer_norm(config: GPTConfig, dtype: DTypeLike, autodiff: bool = False) -> LayerNorm:
    """Make a layer norm."""
    return LayerNorm(config.layer_norm_epsilon, config.bias, dtype, autodiff)


def score_scale(config: GPTConfig, layer: int) -> float:
    """Return the factor on the attention scores of the layer with this index."""
    scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def sinusoids(n_positions: int, n_embd: int) -> np.ndarray:
    """Return the fixed position table (n_positions, D) of Vaswani et al. 2017, section 3.5."""
    column = np.arange(n_embd)
    angle = np.arange(n_positions)[:, None] / 10000 ** (2 * (column // 2) / n_embd)
    return np.where(column % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
