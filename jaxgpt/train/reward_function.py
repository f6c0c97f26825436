"""Rewards by a function of the user's, named on the command line: texts of prompts and responses → numbers.

    def reward(prompts: list[str], responses: list[str]) -> list[float]: ...

Nothing here imports JAX, so that a function that is not there is found out before anything is compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgpt.errors import RunError, UsageError, did_you_mean

RewardFunction = Callable[[list[str], list[str]], np.ndarray]
"""(prompts, responses) → a number for each response, f32."""


def load_reward_function(name: str) -> RewardFunction:
    """Return the function `package.module:function` or `path/to/file.py:function`.

    Raises:
        UsageError: there is no such file, module or function, or it can't be imported.

    Returns:
        The function, which raises a RunError that names it and the prompt, where it fails or does not give a finite
        number for each response.
    """
    where, colon, attribute = name.rpartition(":")
    what = f"reward function {name}"
    if not colon or not where or not attribute.isidentifier():
        raise UsageError(f"{what}: must be package.module:function or path/to/file.py:function")
    try:
        module = _run_file(what, Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise UsageError(f"{what}: no module {error.name!r}; a file is named with its .py") from None
        raise UsageError(f"{what}: can't be imported: {_describe(error)}") from error
    if not hasattr(module, attribute):
        functions = [known for known, value in vars(module).items() if callable(value)]
        raise UsageError(f"{what}: {where} has no {attribute!r}{did_you_mean(attribute, functions)}")
    function = getattr(module, attribute)
    if not callable(function):
        raise UsageError(f"{what}: {attribute} is a {type(function).__name__}, not a function")

    def reward(prompts: list[str], responses: list[str]) -> np.ndarray:
        try:
            given = function(prompts, responses)
        except Exception as error:
            raise RunError(f"{what} failed on {_culprit(function, prompts, responses)}: {_describe(error)}") from error
        return check_rewards(what, given, [f"{n} ({_short(prompt)})" for n, prompt in enumerate(prompts)])

    return reward


def check_rewards(what: str, given: Any, prompts: Sequence[object]) -> np.ndarray:
    """Return rewards as f32.

    Args:
        what: gave them.
        given: the rewards.
        prompts: each one's number, or what else may tell it.

    Raises:
        RunError: they are not one finite number for each prompt.
    """
    try:
        rewards = list(given)
    except TypeError:
        raise RunError(f"{what} gave {_short(given)}; it must give a list of numbers") from None
    if len(rewards) != len(prompts):
        raise RunError(f"{what} gave {len(rewards)} rewards for {len(prompts)} responses")
    numbers = np.zeros(len(rewards), np.float32)
    for row, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True)):
        try:
            with np.errstate(over="ignore"):
                numbers[row] = float(reward)
        except (TypeError, ValueError):
            numbers[row] = math.nan
        if not np.isfinite(numbers[row]):
            raise RunError(f"{what} gave {_short(reward)} for prompt {prompt}; it must be a finite number")
    return numbers


def _run_file(what: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{what}: no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _culprit(function: Callable[..., Any], prompts: list[str], responses: list[str]) -> str:
    """Say on which prompt a function fails, by asking it again for one at a time."""
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            function([prompt], [response])
        except Exception:
            return f"prompt {n} ({_short(prompt)})"
    return f"{len(prompts)} prompts together, though on none of them alone"


def _describe(error: Exception) -> str:
    """Return an error in one line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason} ({last.filename}, line {last.lineno})"


def _short(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
