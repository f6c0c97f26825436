"""Learning from rewards: a policy's own answers are sampled, scored, and turned into what its updates read.

In: prompts, a policy, and what scores answers. Out: iterations of a training step, each a rollout and its updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.rl.config import PPOConfig
    from jaxgpt.rl.experience import Experience, empty_experience
    from jaxgpt.rl.loop import carried, run_ppo
    from jaxgpt.rl.policy import ppo
    from jaxgpt.rl.rollout import Rollout, Rollouts, Scorer, mean_metrics, write_samples
    from jaxgpt.rl.scorers import (
        check_same_template,
        function_scorer,
        model_scorer,
        open_reward_model,
        reward_fingerprint,
    )

__all__ = [
    "Experience",
    "PPOConfig",
    "Rollout",
    "Rollouts",
    "Scorer",
    "carried",
    "check_same_template",
    "empty_experience",
    "function_scorer",
    "mean_metrics",
    "model_scorer",
    "open_reward_model",
    "ppo",
    "reward_fingerprint",
    "run_ppo",
    "write_samples",
]
__getattr__, __dir__ = on_first_use(__name__)
