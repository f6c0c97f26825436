"""What the stages after pretraining are asked to do: frozen records whose fields are the flags of `train.py STAGE`.

Nothing here imports JAX, so that flags are checked before it loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgpt.errors import UsageError
from jaxgpt.flags import Count, PathName, Rows, flag
from jaxgpt.model.lora_config import LoRA
from jaxgpt.train.config import RunConfig, check
from jaxgpt.train.ppo_config import PPOConfig


@dataclass(frozen=True)
class StageConfig(RunConfig):
    """A run that begins with a model and learns from the user's own examples.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    init_from: PathName = flag(
        "auto", "auto: go on with the run in out_dir, or begin with --base; resume; or the model to begin with"
    )
    base: PathName = flag("out", "with auto, the model to begin with: a run's folder, a folder of weights, a hub name")
    dataset: PathName | None = flag(None, "the file with the examples: .jsonl or .json")
    val_dataset: PathName | None = flag(None, "a file with examples to validate on; none: a part of the dataset")
    val_fraction: float | None = flag(None, "of the examples, for validation; none: 0.1 where there is no val_dataset")

    train_layers: str = flag("all", "what is trained: all, last_K for the last K blocks, or head for the scores alone")
    lora_rank: Rows | None = flag(None, "train adapters of this rank (LoRA) instead of the weights; none: no adapters")
    lora_alpha: float | None = flag(None, "weight of the adapters; none: twice their rank")
    lora_dropout: float = flag(0.0, "dropout rate of the adapters' inputs")
    lora_targets: str = flag("c_attn,c_proj,c_fc", "the matrices that get adapters, by HF's names")

    max_iters: Count = flag(500, "updates in the whole run")
    learning_rate: float = flag(5e-5, "peak learning rate, reached after warmup")
    batch_size: Rows = flag(8, "rows of a micro-batch, over all devices")
    eval_interval: Count = flag(100, "updates between evaluations")
    save_interval: Count = flag(100, "updates between checkpoints")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is None:
            raise UsageError("--dataset is missing: a file with the examples; see --help")
        check(self, "val_fraction", lambda x: x is None or 0 < x < 1, "above 0 and below 1, or none")
        if self.lora is not None and self.train_layers != "all":
            raise UsageError(f"--train_layers {self.train_layers}: not with --lora_rank, which freezes all layers")
        if self.init_from != "auto" and self.base != StageConfig.base and self.init_from != "resume":
            raise UsageError(f"--base {self.base}: only with --init_from auto, and --init_from is {self.init_from}")
        if self.val_dataset is not None and self.val_fraction is not None:
            raise UsageError(f"--val_fraction {self.val_fraction}: not with --val_dataset, which has the examples")
        if self.lora is None:
            for name in ("lora_alpha", "lora_dropout", "lora_targets"):
                if (value := getattr(self, name)) != getattr(StageConfig, name):
                    raise UsageError(f"--{name} {value}: only with --lora_rank")

    @property
    def source(self) -> str:
        """What a new run begins with."""
        return self.base if self.init_from == "auto" else self.init_from

    @property
    def lora(self) -> LoRA | None:
        """The adapters to train, if any."""
        if self.lora_rank is None:
            return None
        alpha = 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        targets = tuple(name.strip() for name in self.lora_targets.split(","))
        return LoRA(rank=self.lora_rank, alpha=alpha, dropout=self.lora_dropout, targets=targets)


@dataclass(frozen=True)
class ClassifyConfig(StageConfig):
    """Learning texts' labels."""

    out_dir: PathName = flag("out-classify", "the run's folder")
    dataset: PathName | None = flag(None, "the file with the examples: .jsonl, .json or .csv, with text and label")


@dataclass(frozen=True)
class SFTConfig(StageConfig):
    """Learning to answer from conversations (Ouyang et al. 2022, section 3.5)."""

    out_dir: PathName = flag("out-sft", "the run's folder")
    dataset: PathName | None = flag(None, "the file with the examples: .jsonl or .json, of messages or Alpaca's fields")
    template: PathName | None = flag(None, "a chat template in Jinja; none: the model's own, or ours")
    packing: bool = flag(True, "lay several conversations into a row, none seeing another")


@dataclass(frozen=True)
class RewardConfig(StageConfig):
    """Learning which of two answers is the better one."""

    out_dir: PathName = flag("out-reward", "the run's folder")
    dataset: PathName | None = flag(None, "the file with the examples: .jsonl or .json; prompt, chosen and rejected")
    dropout: float | None = flag(0.0, "all three dropout rates; none: the model's own, but 0 of attention weights")
    centring: float | None = flag(None, "coefficient that holds rewards around 0, such as 0.01; none: nothing does")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "centring", lambda x: x is None or 0 < x < float("inf"), "a positive number, or none")


@dataclass(frozen=True)
class DPOConfig(StageConfig):
    """Learning from pairs of answers without a reward model (Rafailov et al. 2023)."""

    out_dir: PathName = flag("out-dpo", "the run's folder")
    dataset: PathName | None = flag(None, "the file with the examples: .jsonl or .json; prompt, chosen and rejected")
    dropout: float | None = flag(0.0, "all three dropout rates; none: the model's own, but 0 of attention weights")
    learning_rate: float = flag(5e-6, "peak learning rate, reached after warmup")
    loss: Literal["sigmoid", "robust", "hinge", "ipo"] = flag("sigmoid", "the loss of a pair")
    beta: float = flag(0.1, "the higher, the closer the model stays to the reference")
    label_smoothing: float = flag(0.0, "share of pairs that may be the wrong way round: for sigmoid and robust")
    length_normalised: bool = flag(False, "take log-probabilities per token")
    reference: Literal["precomputed", "live"] = flag(
        "precomputed", "log-probabilities of the reference: computed once, or, with adapters, in every step"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "beta", lambda x: 0 < x < float("inf"), "a positive number")
        check(self, "label_smoothing", lambda x: 0 <= x < 0.5, "from 0 up and below 0.5")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise UsageError(f"label_smoothing {self.label_smoothing}: only with the losses sigmoid and robust")
        if self.reference == "live" and self.lora is None:
            raise UsageError("--reference live: only with --lora_rank, where the reference is the model without it")


@dataclass(frozen=True)
class PPOStageConfig(PPOConfig, StageConfig):
    """Learning from rewards for the model's own answers (Schulman et al. 2017), or by GRPO (Shao et al. 2024)."""

    out_dir: PathName = flag("out-ppo", "the run's folder")
    dataset: PathName | None = flag(None, "the file with the prompts: .jsonl or .json, or .txt with one a line")
    reward_model: PathName | None = flag(None, "a run's folder of train.py reward, which scores the answers")
    reward_function: PathName | None = flag(
        None,
        "in its place, module:function or FILE.py:function of (prompts, answers) that gives a number for each; "
        "with a parameter conversations it is given them whole",
    )
    max_iters: Count = flag(100, "iterations in the whole run, each a rollout and epochs of updates")
    learning_rate: float = flag(5e-6, "peak learning rate, reached after warmup")
    warmup_iters: int | None = flag(None, "iterations of linear warmup; none: 5 % of max_iters")
    eval_interval: Count = flag(10, "iterations between evaluations")
    eval_iters: Count = flag(1, "rollouts in an evaluation, of validation prompts, always with the same seeds")
    log_interval: Count = flag(1, "iterations between rows of metrics")
    save_interval: Count = flag(10, "iterations between checkpoints")

    def __post_init__(self) -> None:
        PPOConfig.__post_init__(self)
        StageConfig.__post_init__(self)
        if (self.reward_model is None) == (self.reward_function is None):
            raise UsageError("one of --reward_model and --reward_function must say what answers are worth")
        if self.dropout:
            raise UsageError(f"dropout is {self.dropout}; ppo compares probabilities, and drops nothing: leave it out")
        if self.lora_dropout:
            raise UsageError(f"lora_dropout is {self.lora_dropout}; ppo compares probabilities: leave it out")


STAGES: dict[str, type[StageConfig]] = {
    "classify": ClassifyConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOStageConfig,
}
