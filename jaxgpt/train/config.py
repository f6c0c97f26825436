"""The config of a training run: frozen records whose fields are also the flags of `train.py`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.flags import (
    MOST_ROWS,
    ComputeType,
    Count,
    CountOrZero,
    Device,
    Name,
    NotNegative,
    PathName,
    Positive,
    Rate,
    Rows,
    Seed,
    Whole,
    check_ranges,
    flag,
)
from jaxgpt.model.config import LIMITS, GPTConfig

Context = Annotated[int, Whole(1, LIMITS["n_positions"])]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a warmup-cosine schedule; defaults are nanoGPT's recipe for Shakespeare on a laptop's CPU.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    max_iters: Count = flag(2000, "updates in the whole run", group="optimizer")
    learning_rate: Positive = flag(1e-3, "peak learning rate, reached after warmup", group="optimizer")
    min_lr: NotNegative | None = flag(
        None, "learning rate at the end of the cosine; none for a tenth of the peak", group="optimizer"
    )
    warmup_iters: CountOrZero | None = flag(None, "updates of linear warmup; none: 5 % of max_iters", group="optimizer")
    lr_decay_iters: Count | None = flag(None, "updates until min_lr is reached; none for max_iters", group="optimizer")
    decay_lr: bool = flag(True, "warmup and cosine; false: the learning rate is the peak throughout", group="optimizer")
    weight_decay: NotNegative = flag(0.1, "AdamW's decay of matrices; biases and norms never decay", group="optimizer")
    beta1: Rate = flag(0.9, "AdamW's decay of the mean gradient", group="optimizer")
    beta2: Rate = flag(0.99, "AdamW's decay of the mean square", group="optimizer")
    grad_clip: Positive | None = flag(
        1.0, "largest global norm of the gradient; none for no clipping", group="optimizer"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        top, most = self.learning_rate, self.decay_iters
        if self.min_lr is not None and self.min_lr > top:
            raise UsageError(f"min_lr is {self.min_lr}; it must be from 0 to learning_rate {top}, or none")
        if self.warmup > most:
            raise UsageError(f"warmup_iters is {self.warmup_iters}; it must be from 0 to {most} updates, or none")

    def times(self, updates: int) -> OptimizerConfig:
        """Return the recipe for `updates` updates where this one has one, as an iteration of PPO makes many."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(OptimizerConfig)}
        lengths = {"max_iters": self.max_iters, "warmup_iters": self.warmup, "lr_decay_iters": self.decay_iters}
        return OptimizerConfig(**{**values, **{name: updates * length for name, length in lengths.items()}})

    @property
    def warmup(self) -> int:
        """Updates until the learning rate has come up to its peak."""
        if not self.decay_lr:
            return 0
        return round(min(self.max_iters, self.decay_iters) / 20) if self.warmup_iters is None else self.warmup_iters

    @property
    def final_lr(self) -> float:
        """The learning rate at the end of the cosine."""
        if not self.decay_lr:
            return self.learning_rate
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr

    @property
    def decay_iters(self) -> int:
        """Updates until the learning rate has come down to `min_lr`."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters


@dataclass(frozen=True)
class RunConfig(OptimizerConfig):
    """The flags of every stage.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    out_dir: PathName = flag("out", "the run's folder", on_resume="of the command", per_host=True, about_run=True)
    overwrite: bool = flag(
        False, "move a run that out_dir holds aside and begin anew", on_resume="of the command", about_run=True
    )
    init_from: PathName = flag(
        "scratch",
        "scratch; resume: the run in out_dir; auto: resume if there is one; or a model: gpt2 …, a folder",
        on_resume="of the command",
    )
    allow_pickle: bool = flag(
        False, "also begin with a pytorch_model.bin or ckpt.pt: no code in them is run", about_run=True
    )
    ignore_data_change: bool = flag(
        False,
        "resume although the data is not what the run began with",
        on_resume="of the command",
        group="data",
        about_run=True,
    )
    ignore_config_change: bool = flag(
        False,
        "take a run's config.json as it is, although it was changed by hand",
        on_resume="of the command",
        about_run=True,
    )
    block_size: Context | None = flag(None, "tokens in a row of a batch, and the context of a new model", group="data")
    dropout: Rate | None = flag(
        None,
        "all three dropout rates; none: the model's own, but 0 of a pretrained one's attention weights",
        group="model",
    )

    batch_size: Rows = flag(12, "rows of a micro-batch, over all devices", group="data")
    gradient_accumulation_steps: Rows = flag(1, "micro-batches in an update", group="optimizer")
    seed: Seed = flag(1337, "of initial weights, batches and dropout")
    dtype: ComputeType = flag("auto", "of activations; auto: bfloat16 on GPU and TPU", group="precision and devices")
    remat: bool = flag(
        False, "recompute activations in the backward pass: less memory, more time", group="precision and devices"
    )
    skip_spikes: bool = flag(False, "skip updates whose loss is 6 sigma above the last 128", group="optimizer")
    max_skips: Count = flag(
        10, "updates skipped in a row, for NaN or a spike, after which the run ends", group="optimizer"
    )
    debug_nans: bool = flag(
        False,
        "stop at the first NaN with a traceback to the operation that made it; slow",
        group="precision and devices",
        about_run=True,
    )
    fsdp: Rows | None = flag(
        None,
        "devices that share one copy of the weights; none: 1, and with --plan as many as is best",
        group="precision and devices",
    )
    tensor: Rows | None = flag(
        None, "devices that share each layer's heads; none: likewise", group="precision and devices"
    )
    device: Device = flag("auto", "where to run", per_host=True, group="precision and devices", about_run=True)
    distributed: bool = flag(
        False, "one of several processes of a run: join the others", group="precision and devices", about_run=True
    )

    eval_interval: Count = flag(250, "updates between evaluations", group="logging")
    eval_iters: Count = flag(100, "batches in an evaluation, always the same", group="logging")
    log_interval: Count = flag(10, "updates between rows of metrics", group="logging", about_run=True)
    save_interval: Count = flag(250, "updates between checkpoints", group="logging", about_run=True)
    save_minutes: Positive | None = flag(
        None, "also save when this many minutes have gone by", group="logging", about_run=True
    )
    keep: Count = flag(2, "latest checkpoints to keep, beside the best", group="logging", about_run=True)
    tensorboard: bool = flag(True, "write event files", group="logging", about_run=True)
    explore: bool = flag(
        False,
        "at the end, write explore.html into out_dir: a page that shows the model at work",
        on_resume="of the command",
        group="logging",
        about_run=True,
    )
    wandb: Name | None = flag(None, "wandb project to send metrics to", group="logging", about_run=True)
    profile: PathName | None = flag(
        None,
        "folder for a trace by JAX's profiler of a few updates, behind those that compile",
        on_resume="of the command",
        group="logging",
        about_run=True,
    )
    dry_run: bool = flag(
        False, "print parameters, memory and arithmetic, and end", on_resume="of the command", about_run=True
    )
    eval_only: bool = flag(
        False, "evaluate once, print it, write nothing, and end", on_resume="of the command", about_run=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (rows := self.batch_size * self.gradient_accumulation_steps) > MOST_ROWS:
            parts = f"batch_size {self.batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps}"
            raise UsageError(f"{parts} are {rows} rows in an update; there may be at most {MOST_ROWS}")
        if self.overwrite and self.init_from in ("resume", "auto"):
            raise UsageError(f"--overwrite: only when a run begins, and --init_from is {self.init_from}")

        if self.profile is not None and not self.writes:
            raise UsageError(f"--profile {self.profile}: not with --dry_run or --eval_only, which make no updates")

    @property
    def writes(self) -> bool:
        """True when the run's folder is used."""
        return not (self.dry_run or self.eval_only)

    @property
    def source(self) -> str:
        """The model that a new run begins with."""
        return "scratch" if self.init_from == "auto" else self.init_from

    def model(self, base: GPTConfig) -> GPTConfig:
        """Return `base` with what these flags say of the model: the dropout rates, and flags named as its fields."""
        rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        changes: dict[str, Any] = {} if self.dropout is None else dict.fromkeys(rates, self.dropout)
        for field in dataclasses.fields(GPTConfig):
            if field.name in vars(self) and vars(self)[field.name] is not None:
                changes[field.name] = vars(self)[field.name]
        return dataclasses.replace(base, **changes)

    def fine_tuned(self, base: GPTConfig) -> GPTConfig:
        """Return a pretrained `base` with what these flags say of the model.

        Dropout of attention weights has to be asked for: no kernel has it, GPT-2's config does, and few who train it
        further know either.
        """
        return self.model(dataclasses.replace(base, attn_pdrop=0.0))


@dataclass(frozen=True)
class SampleConfig:
    """Flags of stages whose models speak, beside the flags of every stage."""

    sample_interval: Count | None = flag(
        None,
        "updates between samples, which go to the terminal, samples/ and TensorBoard; none: only at the end",
        group="logging",
        about_run=True,
    )


def trains(config: GPTConfig, which: str) -> Callable[[tuple[str, ...]], bool]:
    """Return for which paths a parameter is trained.

    The backward pass ends where nothing below is trained: what is frozen costs memory and a forward pass only.

    Args:
        config: the model's.
        which: "all"; "last_K" for the last K blocks and all that comes after them: the final layer norm and the heads
            that are there, but not an LM head that is the embedding table; "head" for the scores alone.

    Raises:
        UsageError: none of these, more blocks than the model has, or a head that it does not have.
    """
    if checks.text("train_layers", which) == "all":
        return lambda path: True
    if which == "head":
        if config.labels is None:
            raise UsageError("train_layers is 'head', but this model has no head that scores; valid are all and last_K")
        return lambda path: path[0] == "score"
    found = re.fullmatch("last_([0-9]{1,9})", which)
    if found is None or not 1 <= int(found[1]) <= config.n_layer:
        valid = f"all, head, or last_K with K from 1 to n_layer, {config.n_layer}"
        raise UsageError(f"train_layers is {which!r}; it must be {valid}")
    frozen = {"wte", "wpe", *(f"h_{i}" for i in range(config.n_layer - int(found[1])))}
    return lambda path: path[0] not in frozen
