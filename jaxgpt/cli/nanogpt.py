"""nanoGPT's command lines, in our flags: its config files in Python, and flags that we call otherwise or don't need.

A config is read, never run. What has no meaning here is dropped with a note that says why.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.files import regular
from jaxgpt.notes import note

UNUSED = {
    "always_save_checkpoint": "the latest checkpoints and the best one are kept always; --keep says how many",
    "backend": "JAX chooses how devices talk to each other",
    "compile": "everything is compiled always",
    "wandb_run_name": "wandb shows a run under the name of its folder, --out_dir",
}
"""Flags without a meaning here, and why."""
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
NO = ("false", "0")


def translate(words: Sequence[str], flags: type[Any]) -> list[str]:
    """Return a command line in our flags.

    Args:
        words: one in ours or nanoGPT's; the first may be a config's path, without a flag's name.
        flags: the dataclass of the command's flags.

    Raises:
        UsageError: a config that can't be read.
    """
    fields = {field.name for field in dataclasses.fields(flags)}
    given = list(words)
    if given and given[0].endswith(".py"):
        path, *given = given
        asked = {word[2:].partition("=")[0].replace("-", "_") for word in given if word.startswith("--")}
        table = read_config(path, fields | UNUSED.keys() | {"wandb_log", "wandb_project"})
        given = [f"--{name}={value}" for name, value in table.items() if name not in asked] + given
    elif given and given[0].endswith((".toml", ".json")):
        given[:1] = ["--config", given[0]]
    found: list[str] = []
    wandb = {}
    for before, word in zip(["", *given], given, strict=False):
        name, equals, value = word.partition("=")
        name = name[2:].replace("-", "_") if word.startswith("--") else ""
        is_value = before == "--" or (before.startswith("--") and "=" not in before and before[2:] in fields)
        if is_value or not name or name in fields and not equals:
            found.append(word)
        elif name in UNUSED and name not in fields:
            note(f"--{name} has no meaning here: {UNUSED[name]}")
        elif name in ("wandb_log", "wandb_project") and "wandb" in fields:
            wandb[name] = value if equals else "true"
        else:
            found += _renamed(name, value, word, fields)
    if wandb.get("wandb_log", "false").lower() not in NO:
        found.append(f"--wandb={wandb.get('wandb_project', 'owt')}")
    return found


def _renamed(name: str, value: str, word: str, fields: set[str]) -> list[str]:
    """Return a flag of nanoGPT's that has a value as ours."""
    generating = "out_dir" not in fields
    if name == "out_dir" and generating:
        return [f"--init_from={value}"]
    if name == "init_from" and value == "resume" and generating:
        return []  # the run's folder, which --out_dir or the default names
    if name == "grad_clip" and re.fullmatch(r"0+\.?0*|\.0+", value):
        return ["--grad_clip=none"]
    if name == "dtype" and value == "float16":
        note("--dtype float16: bfloat16 in its place, which needs no scaling of the loss")
        return ["--dtype=bfloat16"]
    if name == "device" and (device := re.fullmatch(r"cuda:(\d+)", value)):
        note(
            f"--device {value}: CUDA_VISIBLE_DEVICES={device[1]} chooses one GPU of several; all that are seen are used"
        )
        return ["--device=cuda"]
    if name == "dataset" and re.fullmatch(r"\w+", value) and not Path(value).exists():
        if (place := Path("data", value, "train.bin")).exists():
            return [f"--dataset={place.parent}"]
        if value == "shakespeare_char":
            note("--dataset shakespeare_char: there is no data/shakespeare_char/train.bin; shakespeare in its place")
            return ["--dataset=shakespeare"]
    return [word]


def read_config(path: str, known: set[str]) -> Mapping[str, Any]:
    """Return what a config in Python assigns: literals and arithmetic with them. Nothing in it is run.

    Raises:
        UsageError: it can't be read, or has a line of another kind or a name that is no flag.
    """
    try:
        tree = ast.parse(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, SyntaxError, RecursionError) as error:
        raise UsageError(f"{path}: not valid Python: {error}") from None
    values: dict[str, Any] = {}
    for line in tree.body:
        where = f"{path}, line {line.lineno}"
        if ast.unparse(line) == "import time" or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)):
            continue
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name) or len(line.targets) > 1:
            raise UsageError(f"{where}: {ast.unparse(line)!r} is not read; a config may only assign values to flags")
        name = line.targets[0].id
        if name not in known:
            raise UsageError(f"{where}: unknown flag {name}{did_you_mean(name, known)}")
        try:
            values[name] = _calculate(line.value, values)
        except (TypeError, ArithmeticError, KeyError):
            wanted = "a literal, or arithmetic with literals"
            raise UsageError(f"{where}: {ast.unparse(line.value)!r} is not read; it must be {wanted}") from None
    return values


def _calculate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return an expression's value; a TypeError or KeyError where it is none that is read."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_calculate(operand, names)
        case ast.BinOp(left=left, op=op, right=right):
            values = _calculate(left, names), _calculate(right, names)
            if isinstance(op, ast.Mult) and not all(isinstance(value, int | float) for value in values):
                raise TypeError("a text many times over could be of any length")
            return OPERATIONS[type(op)](*values)
        case ast.Call() if ast.unparse(node) == "str(time.time())":  # in the names of nanoGPT's runs
            return str(time.time())
    raise TypeError(type(node))
