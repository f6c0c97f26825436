"""A run small enough for a test: a model of one layer, with dropout, on a text that counts."""

from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxgpt.data.batches import Batch, random_batch
from jaxgpt.mesh import make_mesh
from jaxgpt.model.atlas import map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import TrainState, abstract_state, init_params
from jaxgpt.train.step import Step, make_step


class TinyRun:
    """What a run consists of, compiled once for all tests."""

    def __init__(self) -> None:
        rates = {"embd_pdrop": 0.1, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # each one more takes a second to compile
        self.config = GPTConfig(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, **rates)
        self.model = GPT(self.config)
        self.optimizer = adamw(OptimizerConfig(max_iters=50, warmup_iters=2, learning_rate=1e-2), self.config)

    @cached_property
    def params(self) -> Any:
        return jax.device_get(init_params(self.model, seed=0))

    @cached_property
    def step(self) -> Step:
        return jax.jit(make_step(pretrain(self.model), self.optimizer, seed=0), donate_argnums=0)

    @cached_property
    def abstract(self) -> TrainState:
        return abstract_state(make_mesh(), tuple(parameters(self.config)), self.optimizer)

    def begin(self) -> TrainState:
        """Return the state at step 0, in memory of its own, which steps may take over."""
        return jax.jit(TrainState.create, static_argnums=1)(self.params, self.optimizer)

    def batches(self, step: int) -> Batch:
        return random_batch(np.arange(1000) % 17, seed=0, step=step, batch_size=4, block_size=8)


class Bigram(GPT):
    """A model that sees one token only: for what does not depend on the blocks, which take seconds to compile."""

    def hidden(self, tokens: Any, cache: Any = None, **_: Any) -> tuple[Any, Any]:
        return self.wte(tokens), cache


def draw(config: GPTConfig) -> Any:
    """Return parameters that tell texts apart, as those of initialisation hardly do."""
    generator = np.random.default_rng(0)
    return map_parameters(config, lambda p: generator.normal(p.path[-1] == "scale", 0.3, p.shape).astype("f4"))
