"""`train.py [STAGE]`: read the flags, and only when they are right load JAX and begin."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.flags import command, parse
from jaxgpt.train.config import RunConfig, TrainConfig
from jaxgpt.train.folder import read_record
from jaxgpt.train.stages import STAGES

DESCRIPTIONS = {
    "pretrain": "Train a GPT-2: from scratch, from a pretrained model, or on from where a run stopped. "
    f"Stages after that: train.py {'|'.join(STAGES)}, each with flags of its own.",
    "classify": "Train a model to tell the labels of texts.",
    "sft": "Train a model to answer, on conversations.",
    "reward": "Train a reward model on pairs of answers.",
    "dpo": "Train a model on pairs of answers to prefer what was chosen.",
    "ppo": "Train a model to give answers that a reward model or a function rewards.",
}
# What a resumed run does not take over from its own record.
OF_THE_COMMAND = {"init_from", "out_dir", "overwrite", "dry_run", "ignore_data_change", "ignore_config_change"}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a model from the command line."""
    stage, flags = read_flags(argv)
    from jaxgpt.cli.run import train

    train(flags, stage, importlib.import_module(f"jaxgpt.cli.{stage}").prepare)


def read_flags(argv: Sequence[str] | None = None) -> tuple[str, RunConfig]:
    """Read the command line: the stage and its flags. What a resumed run's leaves out is as the run was begun.

    Raises:
        UsageError: a bad flag, or there is no run to resume.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    stage, record = "pretrain", TrainConfig
    if words and not words[0].startswith("-"):
        stage = words.pop(0)
        if stage not in STAGES:
            hint = did_you_mean(stage, STAGES)
            raise UsageError(f"there is no stage {stage!r}; valid are {', '.join(STAGES)}, or none to pretrain{hint}")
        record = STAGES[stage]
    prog = "train.py" if stage == "pretrain" else f"train.py {stage}"
    base = partial(flags_begun_with, stage, record)
    return stage, parse(record, words, prog=prog, description=DESCRIPTIONS[stage], base=base)


def flags_begun_with(stage: str, record: type[RunConfig], given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the flags of the run that a command line resumes, and where they stand; none if it resumes none."""
    mode = given.get("init_from", record.init_from)
    folder = Path(given.get("out_dir", record.out_dir))
    if mode not in ("resume", "auto") or (mode == "auto" and not (folder / "config.json").exists()):
        return "", {}
    if not (folder / "config.json").exists():
        raise UsageError(f"--init_from resume: --out_dir {folder} holds no run; begin one with scratch or auto")
    found = read_record(folder, ignore_change=given.get("ignore_config_change", record.ignore_config_change))
    begun, begun_as = found.get("flags"), found.get("stage")
    if not isinstance(begun, dict):
        raise UsageError(f"--out_dir {folder} holds only weights; start from them with --init_from {folder}")
    if begun_as != stage:
        raise UsageError(f"--out_dir {folder} holds a run of {begun_as}, not of {stage}; choose another folder")
    for name in given.keys() & begun.keys() - OF_THE_COMMAND:
        if given[name] != begun[name]:
            print(f"note: {name} was {begun[name]} when this run began, and is {given[name]} now")
    return str(folder / "config.json"), {name: value for name, value in begun.items() if name not in OF_THE_COMMAND}
