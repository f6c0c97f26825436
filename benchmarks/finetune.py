"""Fine-tuning: a step that trains all of a classifier, against steps that train a part of it or adapters."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.timing import Benchmark, Work, last
from jaxgpt.chat.examples import Labelled
from jaxgpt.devices import start_devices
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import init_adapters, is_beside
from jaxgpt.model.lora_config import LoRA
from jaxgpt.objectives.base import with_adapters
from jaxgpt.objectives.classification import classify
from jaxgpt.train.config import OptimizerConfig, trains
from jaxgpt.train.loop import run
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import TrainState, init_params
from jaxgpt.train.step import make_step

CONFIG = replace(
    GPTConfig.preset("shakespeare-char"), n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    labels=("no", "yes"),
)  # fmt: skip
ROWS, STEPS = 8, 2
ADAPTERS = LoRA(rank=8)


def benchmarks() -> list[Benchmark]:
    what = f"classifier of {CONFIG.n_layer} layers of width {CONFIG.n_embd}, batch {ROWS} × {CONFIG.n_positions}"
    makes = {f"train_layers {which}": partial(_step, which) for which in ("all", "last_2", "last_1", "head")}
    makes |= {f"LoRA of rank {ADAPTERS.rank}": partial(_step, None)}
    return [Benchmark("finetune", what, "step", STEPS, makes, tokens=ROWS * CONFIG.n_positions)]


def _step(which: str | None) -> Work:
    """Return a round of training `which` layers, or adapters."""
    start_devices("cpu")
    model, optimizer = GPT(CONFIG), adamw(OptimizerConfig(), CONFIG)
    params, objective = init_params(model, seed=0), classify(model)
    if which is None:
        moves, objective = is_beside, with_adapters(objective, ADAPTERS)
        adapters = init_adapters(CONFIG, ADAPTERS, jax.random.key(0))
        params = unflatten_dict({**flatten_dict(params), **flatten_dict(adapters)})
    else:
        moves = trains(CONFIG, which)
    step = jax.jit(make_step(objective, optimizer, seed=0), donate_argnums=0)
    generator = np.random.default_rng(0)
    tokens = generator.integers(CONFIG.vocab_size, size=(ROWS, CONFIG.n_positions), dtype=np.int32)
    end, labels = np.full(ROWS, CONFIG.n_positions - 1, np.int32), generator.integers(2, size=ROWS, dtype=np.int32)
    batch = Labelled(tokens, end, labels, np.ones(ROWS, np.float32))
    states = run(step, TrainState.create(params, optimizer, moves), lambda i: batch, until=sys.maxsize)
    return lambda: jax.block_until_ready(last((state for _, state, _ in states), STEPS))
