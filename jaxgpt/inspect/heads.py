"""Which heads matter, by taking them away; and how wide the residual stream is at the start of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.inspect.predictions import token_log_probs
from jaxgpt.inspect.record import inspect
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.config import GPTConfig

Head = tuple[int, int]
"""A layer and a head of it, both from 0."""


@dataclass(frozen=True)
class Ablation:
    """One row of `ablate_heads`.

    Attributes:
        layer, head: which was off.
        loss: mean of the text's tokens without it.
        change: that loss less the whole model's; positive where the head helps.
    """

    layer: int
    head: int
    loss: float
    change: float


def without_heads(config: GPTConfig, params: Any, heads_off: Iterable[Head]) -> Any:
    """Return parameters with which these heads add nothing to the residual stream.

    A head's values reach the stream through its K rows of W_O alone, so these become zeros.

    Raises:
        UsageError: there is no such layer or head.
    """
    blocks: dict[str, Any] = {}
    for layer, head in heads_off:
        layer = checks.whole("layer", layer, 0, config.n_layer - 1)
        head = checks.whole("head", head, 0, config.n_head - 1)
        block = blocks.get(f"h_{layer}", params[f"h_{layer}"])
        c_proj = block["attn"]["c_proj"]
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        c_proj = {**c_proj, "kernel": jnp.asarray(c_proj["kernel"]).at[rows].set(0)}
        blocks[f"h_{layer}"] = {**block, "attn": {**block["attn"], "c_proj": c_proj}}
    return {**params, **blocks}


def ablate_heads(
    config: GPTConfig, params: Any, tokens: checks.Ids, heads: Iterable[Head] | None = None
) -> list[Ablation]:
    """Return how a text's loss changes with each head off alone, the most harmful loss first.

    Args:
        config, params: the model.
        tokens: ids of the text.
        heads: which to try; None for all.

    Raises:
        UsageError: see `token_log_probs` and `without_heads`.
    """
    every = [(layer, head) for layer in range(config.n_layer) for head in range(config.n_head)]
    whole = -float(token_log_probs(config, params, tokens).mean())
    table = []
    for layer, head in every if heads is None else heads:
        loss = -float(token_log_probs(config, without_heads(config, params, [(layer, head)]), tokens).mean())
        table.append(Ablation(layer, head, loss, loss - whole))
    return sorted(table, key=lambda row: -row.change)


def residual_std(
    config: GPTConfig, *, scaled_projections: bool = True, seed: int = 0, stream_std: float | None = None
) -> Float[np.ndarray, " M"]:
    """Return the residual stream's standard deviation before each block and behind the last, at initialisation.

    GPT-2 divides the initial weights of the two projections into the stream by sqrt(2 L), so that L blocks together add
    as much as one would (Radford et al. 2019, section 2.3). Its stream starts low, at about 0.028, the root of the sum
    of two variances of 0.02², so that it grows all the same; where it starts at the width of what blocks add, it stays
    flat with the scale and grows without.

    Args:
        config: the model.
        scaled_projections: False undoes the scale.
        seed: of weights and of a row of random tokens.
        stream_std: stretch the embeddings so that the stream starts with this; None for as they are.
    """
    generator = np.random.default_rng(seed)
    params = map_parameters(config, partial(_draw, generator, config, scaled_projections))
    tokens = generator.integers(config.vocab_size, size=(1, min(config.n_positions, 128)))
    if stream_std is not None:
        if not stream_std > 0:
            raise UsageError(f"stream_std is {stream_std}; it must be positive")
        factor = stream_std / float(inspect(config, params, tokens, lens=False).resid_pre[0].std())
        for name in ("wte", "wpe"):
            if name in params:
                params[name] = {"embedding": params[name]["embedding"] * factor}
    found = inspect(config, params, tokens, lens=False)
    return np.asarray([*found.resid_pre.std((1, 2, 3)), found.resid_final.std()])


def _draw(generator: np.random.Generator, config: GPTConfig, scaled_projections: bool, parameter: Any) -> Array:
    """Return a parameter as it is at init."""
    if parameter.path[-1] in ("scale", "bias"):
        return jnp.full(parameter.shape, float(parameter.path[-1] == "scale"), jnp.float32)
    std = config.initializer_range
    if parameter.path[-2:] == ("c_proj", "kernel") and scaled_projections:
        std /= (2 * config.n_layer) ** 0.5
    return jnp.asarray(generator.normal(0, std, parameter.shape), jnp.float32)
