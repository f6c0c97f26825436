"""The stages: one class a file, each with its flags, its data, its objective, and what it shows.

In: a stage's flags. Out: a run's folder. From Python, `SFT(dataset="chat.jsonl", base="gpt2-jax").run("out")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.stages.base import Stage
    from jaxgpt.stages.classify import Classify
    from jaxgpt.stages.dpo import DPO
    from jaxgpt.stages.ppo import PPO
    from jaxgpt.stages.pretrain import Pretrain
    from jaxgpt.stages.reward import Reward
    from jaxgpt.stages.sft import SFT

__all__ = ["Classify", "DPO", "PPO", "Pretrain", "Reward", "SFT", "Stage"]
__getattr__, __dir__ = on_first_use(__name__)

STAGES = {
    "pretrain": ("Pretrain", "Train a GPT-2: from scratch, from a pretrained model, or on from where a run stopped."),
    "classify": ("Classify", "Train a model to tell the labels of texts."),
    "sft": ("SFT", "Train a model to answer, on conversations."),
    "reward": ("Reward", "Train a reward model on pairs of answers."),
    "dpo": ("DPO", "Train a model on pairs of answers to prefer what was chosen."),
    "ppo": ("PPO", "Train a model to give answers that a reward model or a function rewards."),
}
"""Name on the command line → class, and what it is for in a line."""


def load_stage(name: str) -> type[Stage]:
    """Return the class of the stage with this name."""
    return getattr(importlib.import_module(f"jaxgpt.stages.{name}"), STAGES[name][0])
