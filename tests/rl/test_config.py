"""PPO's flags: what contradicts itself is refused by name, before JAX is there."""

import pytest

from jaxgpt.command_line import parse
from jaxgpt.errors import UsageError
from jaxgpt.rl.config import PPOConfig


def test_flags_are_read():
    config = parse(PPOConfig, ["--algorithm=grpo", "--rollout_size", "32", "--batch_size=16"], prog="", description="")
    assert (config.responses_per_prompt, config.prompts_per_rollout, config.minibatch_size) == (8, 4, 16)
    assert config.updates == 8
    assert PPOConfig().responses_per_prompt == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be a positive number"),
        ({"kl_coef": float("nan")}, "kl_coef is nan; it must be a number from 0 up"),
        ({"lam": 1.5}, "lam is 1.5; it must be from 0 to 1"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1 up"),
        (
            {"rollout_size": 40},
            "rollout_size 40 can't be divided by batch_size x gradient_accumulation_steps 16; try 32 or 48",
        ),
        ({"rollout_size": 2}, "rollout_size 2 can't be divided by batch_size x gradient_accumulation_steps 16; try 16"),
        ({"group_size": 3}, "rollout_size 64 can't be divided by group_size 3; try 63 or 66"),
        ({"algorithm": "grpo", "group_size": 1}, "group_size is 1; with grpo it must be 2 or more"),
        ({"algorithm": "grpo", "lam": 0.9}, "lam 0.9: only with algorithm ppo"),
        ({"algorithm": "grpo", "kl_target": 6.0}, "kl_target 6.0: only with algorithm ppo"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target 6.0: kl_coef is 0"),
        (
            {"kl_target": 6.0, "kl_horizon": 12.8},
            "kl_horizon is 12.8; it must be above 12.8, 0.2 of rollout_size 64, or",
        ),
        ({"kl_target": 6.0, "rollout_size": 5008}, "kl_horizon is 1000; it must be above 1001.6"),
        ({"missing_end_penalty": -1.0}, "missing_end_penalty is -1.0; it must be a positive number, or none"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        PPOConfig(**changes)
