"""`train.py --plan TARGET`: the model that would be trained, and what its run would take there; no data is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgpt import plan, runs
from jaxgpt.devices import start_devices
from jaxgpt.model.config import PRESETS, GPTConfig
from jaxgpt.runs.folder import read_record


def print_plan(stage: Any) -> None:
    """Print the plan that a `Pretrain`'s flags ask for; the stage is then open, but for its data.

    Raises:
        UsageError: the model can't be opened, or no mesh divides the target's devices, rows and heads.
    """
    start_devices("cpu")
    flags, stage.config = stage.flags, planned_model(stage)
    stage.check_length(stage.config)
    lines = plan.describe_plan(
        flags,
        stage.config,
        plan.read_target(flags.plan),
        length=stage.block_size,
        price=flags.price,
        make_trainer=stage.trainer,
    )
    for line in lines:
        print(line, flush=True)


def planned_model(stage: Any) -> GPTConfig:
    """Return the config of the model that a `Pretrain` would train.

    A new one's vocabulary is what --tokenizer says, or else the preset's.
    """
    flags = stage.flags
    if flags.init_from == "resume":
        record = read_record(Path(flags.out_dir), ignore_change=flags.ignore_config_change)
        return record["model"]
    if flags.source != "scratch":
        known = flags.init_from in PRESETS and not Path(flags.init_from).exists()
        config = GPTConfig.preset(flags.init_from) if known else _opened(flags)
        return flags.fine_tuned(config)
    config = stage.described()
    sizes = {"gpt2": GPTConfig.preset("gpt2").vocab_size, "bpe": flags.bpe_size}
    return replace(config, vocab_size=sizes.get(flags.tokenizer or "", config.vocab_size))


def _opened(flags: Any) -> GPTConfig:
    return runs.open_model(
        flags.init_from, allow_pickle=flags.allow_pickle, ignore_config_change=flags.ignore_config_change
    )[0]
