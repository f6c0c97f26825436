"""The config of PPO and GRPO: a frozen record whose fields are also flags. Nothing here imports JAX."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxgpt.errors import UsageError
from jaxgpt.flags import Count, NotNegative, Positive, Probability, Rows, check_ranges, flag

KLEstimator = Literal["k1", "k3"]
HORIZON = 1000.0
"""Responses over which the KL coefficient adapts where nothing else is asked for."""
KL_ERROR = 0.2
"""The largest relative error of the divergence that moves the KL coefficient."""


@dataclass(frozen=True)
class PPOConfig:
    """Learning from rewards for whole responses; an iteration is a rollout and the updates made from it.

    PPO (Schulman et al. 2017) as Huang et al. 2024 describe it for language models: the penalty for leaving the
    reference is part of each token's reward. GRPO (Shao et al. 2024): no values, responses to one prompt are
    measured against each other, and the penalty, by k3, is part of the loss; tokens weigh the same in all responses.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    algorithm: Literal["ppo", "grpo"] = flag(
        "ppo", "ppo: advantages from a value head; grpo: from groups", on_resume="fixed", group="objective"
    )
    rollout_size: Rows = flag(64, "responses in an iteration", on_resume="fixed", group="objective")
    group_size: Rows | None = flag(
        None, "responses to each prompt of an iteration; none: 1, with grpo 8", on_resume="fixed", group="objective"
    )
    max_new_tokens: Count = flag(48, "longest response", on_resume="fixed", group="objective")
    temperature: Positive = flag(1.0, "of sampling; losses are of the same distribution", group="objective")
    missing_end_penalty: Positive | None = flag(
        None, "subtracted from the score of a response that does not end", group="objective"
    )
    kl_coef: NotNegative = flag(
        0.05, "weight of the divergence from the reference, with kl_target at the beginning", group="objective"
    )
    kl_target: Positive | None = flag(
        None, "divergence of a whole response, in nats, that kl_coef adapts to", group="objective"
    )
    kl_horizon: Positive | None = flag(
        None,
        f"with kl_target, responses over which kl_coef adapts; none: {HORIZON:g}",
        group="objective",
    )
    kl_estimator: KLEstimator = flag("k1", "k1: unbiased; k3: also never negative, of less variance", group="objective")
    whiten_rewards: bool = flag(False, "scale tokens' rewards to variance 1, keeping their mean", group="objective")
    whiten_advantages: bool = flag(True, "scale and shift advantages to mean 0 and variance 1", group="objective")
    gamma: Probability = flag(1.0, "discount from token to token", group="objective")
    lam: Probability = flag(0.95, "of generalised advantages: 0 trusts the values, 1 the rewards", group="objective")
    epochs: Count = flag(
        4, "times that an iteration's responses are gone through", on_resume="fixed", group="objective"
    )
    batch_size: Rows = flag(16, "responses of a micro-batch, over all devices", on_resume="fixed", group="data")
    gradient_accumulation_steps: Rows = flag(1, "micro-batches in an update", on_resume="fixed", group="optimizer")
    clip: Positive = flag(0.2, "how far a token's probability may be moved, as a ratio", group="objective")
    value_clip: Positive | None = flag(0.2, "how far a value may be moved; none: any distance", group="objective")
    value_coef: NotNegative = flag(0.1, "weight of the loss of values", group="objective")
    entropy_coef: NotNegative = flag(0.0, "weight of the bonus for entropy", group="objective")

    def __post_init__(self) -> None:
        check_ranges(self)
        update = "batch_size x gradient_accumulation_steps"
        for name, parts in ((update, self.minibatch_size), ("group_size", self.responses_per_prompt)):
            if over := self.rollout_size % parts:
                near = [size for size in (self.rollout_size - over, self.rollout_size - over + parts) if size]
                raise UsageError(
                    f"rollout_size {self.rollout_size} can't be divided by {name} {parts}; "
                    f"try {' or '.join(map(str, near))}"
                )
        if self.algorithm == "grpo":
            self._check_grpo()
        if self.kl_target is None and self.kl_horizon is not None:
            raise UsageError(f"kl_horizon {self.kl_horizon}: only with kl_target, without which kl_coef is fixed")
        if self.kl_target is not None and self.kl_coef == 0:
            raise UsageError(f"kl_target {self.kl_target}: kl_coef is 0, and a factor can't adapt it; begin above 0")
        if self.kl_target is not None and self.horizon <= (least := KL_ERROR * self.rollout_size):
            above = f"it must be above {least:g}, {KL_ERROR:g} of rollout_size {self.rollout_size}"
            raise UsageError(f"kl_horizon is {self.horizon:g}; {above}, or an iteration could make kl_coef negative")

    def _check_grpo(self) -> None:
        if self.responses_per_prompt < 2:
            raise UsageError(f"group_size is {self.group_size}; with grpo it must be 2 or more, to compare")
        defaults = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
        for name in ("kl_target", "kl_horizon", "kl_estimator", "whiten_rewards", "whiten_advantages", "gamma", "lam",
                     "value_clip", "value_coef"):  # fmt: skip
            if getattr(self, name) != defaults[name]:
                raise UsageError(f"{name} {getattr(self, name)}: only with algorithm ppo")

    @property
    def horizon(self) -> float:
        """Responses over which the KL coefficient adapts."""
        return HORIZON if self.kl_horizon is None else self.kl_horizon

    @property
    def responses_per_prompt(self) -> int:
        """Responses to each prompt of an iteration."""
        if self.group_size is None:
            return 8 if self.algorithm == "grpo" else 1
        return self.group_size

    @property
    def prompts_per_rollout(self) -> int:
        """Different places in the list of prompts that an iteration needs."""
        return self.rollout_size // self.responses_per_prompt

    @property
    def minibatch_size(self) -> int:
        """Responses in an update."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def minibatches(self) -> int:
        """Updates in an epoch."""
        return self.rollout_size // self.minibatch_size

    @property
    def updates(self) -> int:
        """Updates in an iteration."""
        return self.epochs * self.minibatches
