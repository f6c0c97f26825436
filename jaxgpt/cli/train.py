"""`train.py [STAGE]`: read the flags, and only when they are right load JAX and begin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from jaxgpt.cli.dialects import translate
from jaxgpt.command_line import command, parse
from jaxgpt.commands import called
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.stages import STAGES, Stage, load_stage
from jaxgpt.train.resume import resumed_flags

EXAMPLES = {
    "pretrain": (
        "train.py",
        "train.py --dataset path/to/files --tokenizer bpe --out_dir mine",
        "train.py --init_from resume --max_iters 3000",
        "train.py --init_from gpt2 --dataset path/to/files --out_dir finetuned --learning_rate 3e-5",
    ),
    "classify": ("train.py classify --base gpt2-jax --dataset texts.csv --train_layers last_2",),
    "sft": (
        "train.py sft --base gpt2-jax --dataset conversations.jsonl",
        "train.py sft --base gpt2-jax --dataset conversations.jsonl --lora_rank 16 --learning_rate 2e-4",
    ),
    "reward": ("train.py reward --base out-sft --dataset pairs.jsonl",),
    "dpo": ("train.py dpo --base out-sft --dataset pairs.jsonl --beta 0.1",),
    "ppo": (
        "train.py ppo --base out-sft --dataset prompts.jsonl --reward_model out-reward",
        "train.py ppo --base out-sft --dataset prompts.jsonl --reward_function mine.py:reward --algorithm grpo",
    ),
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a model from the command line."""
    read_stage(argv).run()


def read_stage(argv: Sequence[str] | None = None) -> Stage:
    """Read the command line: the stage with its flags. What a resumed run's leaves out is as the run was begun.

    Raises:
        UsageError: a bad flag, or there is no run to resume.
    """
    words, name = list(sys.argv[1:] if argv is None else argv), "pretrain"
    others = [stage for stage in STAGES if stage != "pretrain"]
    if words and not words[0].startswith("-") and not words[0].endswith((".py", ".toml", ".json")):
        name = words.pop(0)
        if name not in STAGES:
            hint = did_you_mean(name, others)
            raise UsageError(f"there is no stage {name!r}; valid are {', '.join(others)}, or none to pretrain{hint}")
    prog, description = f"{called('train')} {name}", STAGES[name][1]
    if name == "pretrain":
        stages = "\n".join(f"  {other:<10} {STAGES[other][1]}" for other in others)
        prog, description = called("train"), f"{description}\n\nstages, each by train.py STAGE [flags]:\n{stages}"
    stage = load_stage(name)
    base = partial(resumed_flags, name, stage.Flags)
    words = translate(words, stage.Flags)
    flags = parse(stage.Flags, words, prog=prog, description=description, examples=examples(name), base=base)
    return stage(flags)


def examples(stage: str) -> str:
    """Return the examples at the end of a stage's `--help`."""
    lines = "\n".join(f"  {line}" for line in EXAMPLES[stage])
    return f"examples:\n{lines}"
