"""The commands by the names under which their user calls them: scripts, modules of Python, or installed."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

SCRIPTS = {"train": "train.py", "generate": "generate.py", "convert": "convert_weights.py"}
INSTALLED = "jaxgpt-"
_IN_TEXTS = re.compile(r"(?<![\w./-])(train|generate|convert)(?:_weights)?\.py(?![\w./-])")


def called(name: str) -> str:
    """Return the words that call a command: "train", "generate", "convert", "evaluate" or "explore"."""
    if Path(sys.argv[0]).name.startswith(INSTALLED):
        return f"{INSTALLED}{name}"
    return SCRIPTS.get(name, f"python -m jaxgpt.{name}")


def as_called(text: str) -> str:
    """Return a text, in which commands are scripts, with the words by which its reader calls them."""
    return _IN_TEXTS.sub(lambda found: called(found[1]), text)


def unused(path: str | Path) -> str:
    """Return a path where nothing is yet: this one, or with a number behind it."""
    names = itertools.chain([str(path)], (f"{path}-{i}" for i in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def next_command(name: str, *words: object) -> str:
    """Return a line for the shell, from where its user stands, that calls a command as this one was called."""
    this, installed = Path(sys.argv[0]), f"{INSTALLED}{name}"
    if this.name in SCRIPTS.values() and (script := this.with_name(SCRIPTS[name])).exists():
        command = [os.path.relpath(sys.executable), os.path.relpath(script)]
    else:
        beside = Path(sys.executable).with_name(installed)
        known = shutil.which(installed)
        command = [os.path.relpath(beside) if beside.exists() and known != str(beside) else installed]
    return shlex.join([*command, *map(str, words)])
