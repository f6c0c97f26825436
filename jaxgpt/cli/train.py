"""`train.py [STAGE]`: read the flags, and only when they are right load JAX and begin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from jaxgpt.cli.dialects import translate
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.flags import command, parse
from jaxgpt.stages import STAGES, Stage, load_stage
from jaxgpt.train.resume import resumed_flags


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a model from the command line."""
    read_stage(argv).run()


def read_stage(argv: Sequence[str] | None = None) -> Stage:
    """Read the command line: the stage with its flags. What a resumed run's leaves out is as the run was begun.

    Raises:
        UsageError: a bad flag, or there is no run to resume.
    """
    words, name, prog = list(sys.argv[1:] if argv is None else argv), "pretrain", "train.py"
    description = STAGES[name][1]
    if words and not words[0].startswith("-") and not words[0].endswith((".py", ".toml", ".json")):
        name = words.pop(0)
        others = [stage for stage in STAGES if stage != "pretrain"]
        if name not in STAGES:
            hint = did_you_mean(name, others)
            raise UsageError(f"there is no stage {name!r}; valid are {', '.join(others)}, or none to pretrain{hint}")
        prog, description = f"train.py {name}", STAGES[name][1]
    else:
        stages = "|".join(stage for stage in STAGES if stage != "pretrain")
        description += f" Stages after that: train.py {stages}, each with flags of its own."
    stage = load_stage(name)
    words = translate(words, stage.Flags)
    return stage(
        parse(stage.Flags, words, prog=prog, description=description, base=partial(resumed_flags, name, stage.Flags))
    )
