"""`jaxgpt-eval`: lm-evaluation-harness's own command line, in which `--model jaxgpt` is one more model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxgpt.command_line import command
from jaxgpt.errors import UsageError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Register the model, and be `lm_eval`."""
    try:
        importlib.import_module("jaxgpt.evaluate.harness")  # the harness knows no plug-ins
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("jaxgpt"):
            raise
        raise UsageError(
            f"{error.name.partition('.')[0]} is missing: pip install 'jaxgpt[eval]' brings lm-evaluation-harness"
        ) from None
    if argv is not None:
        sys.argv[1:] = argv
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise UsageError(f"--tasks: {error}") from None
