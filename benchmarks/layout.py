"""One leaf per layer, run one after another as jaxgpt does, against leaves stacked over layers, run by `lax.scan`.

These are the measurements behind that decision in `docs/design.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from benchmarks import decode, train
from benchmarks.timing import Benchmark, Work, last
from jaxgpt.data.batches import Batch
from jaxgpt.devices import start_devices
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT, Block, layer_norm
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train.loop import run
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import Step, make_step

XL = replace(GPTConfig.preset("gpt2-xl"), n_positions=256)
# It decays biases and norms too: in a stack they have two axes as matrices have, and both sides shall do equal work.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def benchmarks() -> list[Benchmark]:
    xl = f"train step of {XL.n_layer} layers of width {XL.n_embd}, batch 1 × {XL.n_positions}"
    return [
        _benchmark("layout-char", train.describe(train.CHAR), "step", 2, partial(_train, train.CHAR)),
        _benchmark("layout-124m", train.describe(train.GPT2), "step", 1, partial(_train, train.GPT2)),
        _benchmark(
            "layout-decode",
            f"GPT-2 124M, batch 1, cache of {decode.PROMPT + decode.NEW_TOKENS}",
            "token",
            decode.NEW_TOKENS,
            _decode,
        ),
        _benchmark("layout-compile", xl, "program", 1, _compile),
    ]


def _benchmark(name: str, what: str, unit: str, units: int, make: Callable[[type[Any], int], Work]) -> Benchmark:
    layouts = {"one leaf per layer": GPT, "stacked leaves": StackedGPT}
    return Benchmark(name, what, unit, units, {name: partial(make, model, units) for name, model in layouts.items()})


@dataclass(frozen=True)
class StackedGPT:
    """GPT with its layers' leaves stacked, as much of it as training and decoding call.

    Its cache has one buffer of keys and one of values, stacked as well.
    """

    config: GPTConfig

    def init(self, key: Array, tokens: Array) -> dict[str, Any]:
        params = GPT(self.config).init(key, tokens)["params"]
        layers = [params.pop(f"h_{i}") for i in range(self.config.n_layer)]
        return {"params": {**params, "h": stack(layers)}}

    def apply(
        self, variables: dict[str, Any], *args: Any, method: str = "__call__", **_: Any
    ) -> Array | tuple[Array, KVCache | None]:
        gpt: Any = partial(GPT(self.config).apply, variables)
        if method == "head":
            return gpt(method="head")
        hidden, cache = self._hidden(gpt, variables["params"], *args)
        return (hidden if method == "hidden" else gpt(hidden, method="logits")), cache

    def _hidden(
        self, gpt: Any, params: dict[str, Any], tokens: Array, cache: KVCache | None = None
    ) -> tuple[Array, KVCache | None]:
        block: Any = Block(self.config, layer=0)
        count = tokens.shape[1]
        positions = jnp.arange(count)[None] if cache is None else cache.positions(count)
        seen = None if cache is None else cache.seen(count)

        def layer(x: Array, inputs: tuple[Any, Any]) -> tuple[Array, Any]:
            weights, buffers = inputs
            own = None if cache is None else replace(cache, **buffers)
            x, own = block.apply({"params": weights}, x, seen, own, True)
            return x, _buffers(own)

        x, buffers = jax.lax.scan(layer, gpt(tokens, positions, method="embed"), (params["h"], _buffers(cache)))
        if cache is not None:
            cache = replace(cache, length=cache.length + count, new=False, **buffers)
        ln_f: Any = layer_norm(self.config, jnp.float32)
        return ln_f.apply({"params": params["ln_f"]}, x), cache


def stack(trees: Any) -> Any:
    """Return one tree whose leaves have the layers as their first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _buffers(cache: KVCache | None) -> dict[str, Any] | None:
    """Return the part of a cache that has an axis of layers."""
    return None if cache is None else {"key_buffers": cache.key_buffers, "value_buffers": cache.value_buffers}


def _train(flags: PretrainConfig, layout: type[Any], steps: int) -> Work:
    start_devices("cpu")
    stage, _ = train.begin(flags)
    model = layout(stage.config)
    step, state = jax.jit(_step(model), donate_argnums=0), jax.jit(partial(_state, model))()
    states = (state for _, state, _ in run(step, state, stage.batch, until=sys.maxsize))
    return lambda: jax.block_until_ready(last(states, steps))


def _compile(layout: type[Any], _: int) -> Work:
    start_devices("cpu")
    model = layout(XL)
    state = jax.eval_shape(partial(_state, model))
    ids = jnp.zeros((1, XL.n_positions), jnp.int32)
    batch = Batch(ids, ids, jnp.ones(ids.shape))
    return lambda: jax.jit(_step(model), donate_argnums=0).lower(state, batch).compile()


def _step(model: Any) -> Step:
    return make_step(pretrain(model), OPTIMIZER, seed=0)


def _state(model: Any) -> TrainState:
    return TrainState.create(initial_params(model), OPTIMIZER)


def initial_params(model: Any) -> Any:
    return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _decode(layout: type[Any], steps: int) -> Work:
    start_devices("cpu")
    model = layout(decode.CONFIG)

    @jax.jit
    def generate(params: Any) -> Array:
        # Not new: a loop's cache keeps its type.
        cache = KVCache.empty(decode.CONFIG, jnp.zeros(1, jnp.int32), decode.PROMPT + steps, jnp.float32, new=False)
        if layout is StackedGPT:
            cache = replace(cache, key_buffers=(stack(cache.key_buffers),), value_buffers=(stack(cache.value_buffers),))

        def step(_: Array, carry: tuple[Array, KVCache]) -> tuple[Array, KVCache]:
            token, cache = carry
            logits, cache = model.apply({"params": params}, token, cache)
            return logits.argmax(-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, steps, step, (jnp.zeros((1, 1), jnp.int32), cache))[0]

    params = jax.jit(partial(initial_params, model))()
    return lambda: generate(params).block_until_ready()
