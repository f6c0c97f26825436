"""Rewards by a function of the user's, named on the command line: prompts and responses → numbers.

    def reward(prompts: list[str], responses: list[str]) -> list[float]: ...
    def reward(prompts: list[str], responses: list[str], conversations: list[list[dict]]) -> list[float]: ...

A prompt is a text to continue, or the user's last message. A function with a parameter `conversations` is also given
the whole of each: its messages with "role" and "content", the last one the user's; none for a text to continue. Of
several processes of a run the first one alone calls it.

Nothing here imports JAX, so that a function that is not there is found out before anything is compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgpt.chat.records import Prompt
from jaxgpt.errors import RunError, UsageError, did_you_mean


@dataclass(frozen=True)
class RewardFunction:
    """A user's function.

    Attributes:
        name: what messages call it.
        function: what was found under its name.
        file: where it was found.
        takes_conversations: whether it has a parameter `conversations`.
    """

    name: str
    function: Callable[..., Any]
    file: str | None
    takes_conversations: bool

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Return a number for each response, f32.

        Raises:
            RunError: the function does not give a finite number for each, whatever it does instead.
        """
        named = [f"{n} ({_short(prompt.asked)})" for n, prompt in enumerate(prompts)]
        try:
            return check_rewards(self.name, self._call(prompts, responses), named)
        except RunError:
            raise
        except BaseException as error:  # sys.exit, too, is no answer
            _leave_interrupted(error)
            failed = f"{self.name} failed on {self._culprit(prompts, responses)}: {_describe(error, self.file)}"
            raise RunError(failed) from error

    def _call(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        more = {}
        if self.takes_conversations:
            told = [() if isinstance(prompt.prompt, str) else prompt.prompt for prompt in prompts]
            more["conversations"] = [[asdict(message) for message in messages] for messages in told]
        given = self.function([prompt.asked for prompt in prompts], list(responses), **more)
        return list(given) if isinstance(given, Iterator) else given

    def _culprit(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> str:
        """Say on which prompt the function fails, by asking it again for one at a time."""
        for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                self._call([prompt], [response])
            except BaseException as error:
                _leave_interrupted(error)
                return f"prompt {n} ({_short(prompt.asked)})"
        return f"{len(prompts)} prompts together, though on none of them alone"


def load_reward_function(name: str) -> RewardFunction:
    """Return the function `package.module:function` or `path/to/file.py:function`.

    Raises:
        UsageError: there is no such file, module or function, or it can't be imported.
    """
    where, colon, attribute = name.rpartition(":")
    what = f"reward function {name}"
    if not colon or not where or not attribute.isidentifier():
        raise UsageError(f"{what}: must be package.module:function or path/to/file.py:function")
    try:
        module = _run_file(what, Path(where)) if where.endswith(".py") else importlib.import_module(where)
        function = getattr(module, attribute, None)
    except UsageError:
        raise
    except BaseException as error:
        _leave_interrupted(error)
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise UsageError(f"{what}: no module {error.name!r}; a file is named with its .py") from None
        raise UsageError(f"{what}: can't be imported: {_describe(error, os.path.abspath(where))}") from error
    if function is None:
        functions = [known for known, value in vars(module).items() if callable(value)]
        raise UsageError(f"{what}: {where} has no {attribute!r}{did_you_mean(attribute, functions)}")
    if not callable(function):
        raise UsageError(f"{what}: {attribute} is a {type(function).__name__}, not a function")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some that are not written in Python
        parameters = {}
    return RewardFunction(what, function, module.__file__, "conversations" in parameters)


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
        except (TypeError, ValueError, OverflowError):
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


def _leave_interrupted(error: BaseException) -> None:
    """Pass Ctrl-C on, where it raises; in a run it does not, and whoever raises this has other reasons."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error


def _describe(error: BaseException, file: str | None) -> str:
    """Return an error in one line, with the last place in a file before it was raised, or just the last."""
    places = traceback.extract_tb(error.__traceback__)
    last = next((place for place in reversed(places) if place.filename == file), places[-1])
    try:
        reason = (str(error).strip().splitlines() or [""])[0]
    except Exception:  # of the user's own kind of error
        reason = ""
    return f"{type(error).__name__}: {reason} ({last.filename}, line {last.lineno})"


def _short(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
