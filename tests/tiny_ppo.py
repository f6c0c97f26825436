"""A run of PPO small enough for a test: a model of one layer that is rewarded for one token."""

from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxgpt.mesh import make_mesh
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.loop import carried
from jaxgpt.rl.policy import ppo
from jaxgpt.rl.rollout import Rollouts
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import TrainState, abstract_state, init_params
from jaxgpt.train.step import Step, make_step


class TinyPPO:
    """A policy that is rewarded for the token 3; 7 ends a response, and ids from 8 up only pad the table.

    Dropout is as high as it gets: if anything were dropped, nothing below would hold. The value head is far from its
    small initial weights, so that values differ, and samples are drawn at a temperature that is not 1.
    """

    def __init__(self) -> None:
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
        shape = {"vocab_size": 9, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
        self.model = GPT(GPTConfig(**shape, **rates, labels=("value",), bos_token_id=None, eos_token_id=7))
        self.config = PPOConfig(
            rollout_size=32,
            max_new_tokens=6,
            temperature=0.8,
            missing_end_penalty=0.01,
            kl_target=4.0,
            kl_horizon=400.0,
            epochs=2,
            batch_size=16,
        )
        self.optimizer = adamw(OptimizerConfig(max_iters=500, warmup_iters=0, learning_rate=1e-2), self.model.config)
        self.params = jax.device_get(init_params(self.model, seed=0))
        self.params["score"] = 20 * self.params["score"]

    @cached_property
    def step(self) -> Step:
        return jax.jit(make_step(ppo(self.model, self.config, vocab_size=8), self.optimizer, seed=0), donate_argnums=0)

    @cached_property
    def abstract(self) -> TrainState:
        rows = tuple(parameters(self.model.config))
        return abstract_state(make_mesh(), rows, self.optimizer, carried=carried(self.config))

    def begin(self) -> TrainState:
        """Return the state at step 0, in memory of its own, which steps may take over."""
        return TrainState.create(self.params, self.optimizer, carried=carried(self.config))

    def rollouts(self, **changes: Any) -> Rollouts:
        given = {
            "model": self.model,
            "config": self.config,
            "prompts": lambda i: [[1 + (i + n) % 3] * (1 + n % 3) for n in range(32)],
            "prompt_length": 4,
            "scorer": share_of_threes,
            "reference": self.params,
            "seed": 0,
            "stop_ids": (7,),
            "vocab_size": 8,
        }
        return Rollouts(**{**given, **changes})


def share_of_threes(prompts: list[list[int]], responses: list[list[int]]) -> np.ndarray:
    return np.asarray([np.mean(np.asarray(response) == 3) for response in responses])
