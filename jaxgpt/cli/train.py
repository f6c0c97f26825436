"""`train.py`: read the flags, and only when they are right load JAX and begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.flags import command, parse
from jaxgpt.train.config import TrainConfig
from jaxgpt.train.folder import read_record

DESCRIPTION = "Train a GPT-2: from scratch, from a pretrained model, or on from where a run stopped."
# What a resumed run does not take over from its own record.
OF_THE_COMMAND = {"init_from", "out_dir", "overwrite", "dry_run", "ignore_data_change"}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a model from the command line."""
    flags = read_flags(argv)
    from jaxgpt.cli.pretrain import prepare
    from jaxgpt.cli.run import train

    train(flags, "pretrain", prepare)


def read_flags(argv: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line; where it resumes a run, what it leaves out is as the run was begun.

    Raises:
        UsageError: a bad flag, or there is no run to resume.
    """
    return parse(TrainConfig, argv, prog="train.py", description=DESCRIPTION, base=flags_begun_with)


def flags_begun_with(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the flags of the run that a command line resumes, and where they stand; none if it resumes none."""
    mode = given.get("init_from")
    folder = Path(given.get("out_dir", TrainConfig.out_dir))
    if mode not in ("resume", "auto") or (mode == "auto" and not (folder / "config.json").exists()):
        return "", {}
    if not (folder / "config.json").exists():
        raise UsageError(f"--init_from resume: --out_dir {folder} holds no run; begin one with scratch or auto")
    begun = read_record(folder).get("flags")
    if not isinstance(begun, dict):
        raise UsageError(f"--out_dir {folder} holds only weights; start from them with --init_from {folder}")
    for name in given.keys() & begun.keys() - OF_THE_COMMAND:
        if given[name] != begun[name]:
            print(f"note: {name} was {begun[name]} when this run began, and is {given[name]} now")
    return str(folder / "config.json"), {name: value for name, value in begun.items() if name not in OF_THE_COMMAND}
