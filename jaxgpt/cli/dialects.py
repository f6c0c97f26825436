"""Command lines of nanoGPT, transformers and TRL, in our flags: their names for what we call otherwise or don't need.

NanoGPT's configs in Python are read, never run. What has no meaning here is dropped with a note that says why.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.errors import ELSEWHERE, UsageError, did_you_mean
from jaxgpt.files import regular
from jaxgpt.flags import switches
from jaxgpt.notes import note

STEPS = "what is done again and again is so by updates: --eval_interval, --save_interval and --log_interval"
UNUSED = {
    "always_save_checkpoint": "the latest checkpoints and the best one are kept always; --keep says how many",
    "backend": "JAX chooses how devices talk to each other",
    "compile": "everything is compiled always",
    "dataset_num_proc": "data is read in one process",
    "do_eval": "a run evaluates as it goes",
    "do_train": "a run trains",
    "eval_strategy": STEPS,
    "evaluation_strategy": STEPS,
    "logging_strategy": STEPS,
    "per_device_eval_batch_size": "evaluations take --batch_size",
    "save_strategy": STEPS,
    "trust_remote_code": "no code of a model's is ever run",
    "wandb_run_name": "wandb shows a run under the name of its folder, --out_dir",
}
"""Flags without a meaning here, and why."""
COMBINED = ("bf16", "fp16", "lr_scheduler_type", "optim", "report_to", "use_peft", "wandb_log", "wandb_project")
"""Flags whose values, or several of which together, are one of ours."""
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
        words: one in ours or another tool's; the first may be a config's path, without a flag's name.
        flags: the dataclass of the command's flags.

    Raises:
        UsageError: a config that can't be read.
    """
    fields, alone = {field.name for field in dataclasses.fields(flags)}, switches(flags)
    given = deque(_with_config(words, fields))
    found: list[str] = []
    combined: dict[str, str] = {}
    renamed: list[str] = []
    while given:
        word = given.popleft()
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if word == "--" or not word.startswith("--"):
            found += [word, *given] if word == "--" else [word]
            given = deque([] if word == "--" else given)
            continue
        others = (ours for ours in ELSEWHERE.get(name, ()) if ours in fields)
        if name not in fields and (ours := next(others, None)):
            renamed.append(f"--{name} is --{ours}")
            name, word = ours, f"--{ours}{equals}{value}"
        if not equals and given and not (given[0].startswith("--") and name not in fields) and name not in alone:
            if name in fields or name in UNUSED or name in COMBINED or name == "out_dir":
                value, equals = given.popleft(), " "
        if name in UNUSED and name not in fields:
            note(f"--{name} has no meaning here: {UNUSED[name]}")
        elif name in COMBINED and name not in fields and "out_dir" in fields:
            combined[name] = value if equals else "true"
        elif (ours := _otherwise(name, value, fields) if equals else None) is not None:
            found += ours
        else:
            found += [word, value] if equals == " " else [word]
    if renamed:
        note(f"by our names {', '.join(renamed)}")
    return found + _combine(combined, found, fields)


def _with_config(words: Sequence[str], fields: set[str]) -> list[str]:
    """Return a command line whose config, where it begins with one, is in flags."""
    if not words or not words[0].endswith((".py", ".toml", ".json")):
        return list(words)
    path, *given = words
    if not path.endswith(".py"):
        return ["--config", path, *given]
    asked = {word[2:].partition("=")[0].replace("-", "_") for word in given if word.startswith("--")}
    table = read_config(path, fields | UNUSED.keys() | {"wandb_log", "wandb_project"})
    return [f"--{name}={value}" for name, value in table.items() if name not in asked] + given


def _otherwise(name: str, value: str, fields: set[str]) -> list[str] | None:
    """Return a flag of ours with another tool's value, in ours; None where it is ours too."""
    generating = "out_dir" not in fields
    if name == "out_dir" and generating:
        return [f"--init_from={value}"]
    if name == "init_from" and value == "resume" and generating:
        return []  # the run's folder, which --out_dir or the default names
    if name == "grad_clip" and re.fullmatch(r"0+\.?0*|\.0+", value):
        return ["--grad_clip=none"]
    if name == "dtype" and value == "float16" and not generating:
        note("--dtype float16: bfloat16 in its place, which needs no scaling of the loss")
        return ["--dtype=bfloat16"]
    if name == "device" and (device := re.fullmatch(r"cuda:(\d+)", value)):
        note(
            f"--device {value}: CUDA_VISIBLE_DEVICES={device[1]} chooses one GPU of several; all that are seen are used"
        )
        return ["--device=cuda"]
    if name == "dataset" and re.fullmatch(r"\w+", value) and not Path(value).exists():
        if (place := Path("data", value, "train.bin")).exists():
            return ["--dataset", str(place.parent)]  # more may follow
        if value == "shakespeare_char":
            note("--dataset shakespeare_char: there is no data/shakespeare_char/train.bin; shakespeare in its place")
            return ["--dataset", "shakespeare"]
    return None


def _combine(given: Mapping[str, str], found: Sequence[str], fields: set[str]) -> list[str]:
    """Return flags that mean what other tools' flags mean together; those that nothing here means, as they are."""
    ours = []
    on = {name for name, value in given.items() if value.lower() not in NO}
    for name, value in given.items():
        if name == "optim" and value.startswith("adamw"):
            continue
        if name == "lr_scheduler_type" and value in ("cosine", "constant"):
            ours += [] if value == "cosine" else ["--decay_lr=false"]
        elif name == "report_to" and value in ("none", "tensorboard", "wandb"):
            ours += [f"--tensorboard={value == 'tensorboard'}", *(["--wandb=huggingface"] if value == "wandb" else [])]
        elif name in ("optim", "lr_scheduler_type", "report_to") or (name == "use_peft" and "lora_rank" not in fields):
            ours.append(f"--{name}={value}")
    if "fp16" in on:
        note("--fp16: bfloat16 in its place, which needs no scaling of the loss")
    if on & {"fp16", "bf16"}:
        ours.append("--dtype=bfloat16")
    if "use_peft" in on and "lora_rank" in fields and not any(re.match("--lora[-_]rank", word) for word in found):
        note("--use_peft: adapters of rank 16, as --lora_rank would say otherwise")
        ours.append("--lora_rank=16")
    if "wandb_log" in on:
        ours.append(f"--wandb={given.get('wandb_project', 'owt')}")
    return ours


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
