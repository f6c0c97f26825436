"""Flags declared as the fields of a frozen dataclass: its types say what they may be, its defaults are the only ones.

`jaxgpt.command_line` reads them. Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxgpt import checks


@dataclass(frozen=True)
class Whole:
    """The range of a whole number: from `least` to `most`, which is far above what anyone means."""

    least: int
    most: int


@dataclass(frozen=True)
class Real:
    """The range of a real number: a test, which is False for NaN, and words for it."""

    test: Callable[[float], bool]
    words: str


Name = Annotated[str, "name"]
"""A text that is never empty: an empty one comes of a shell's variable that is not set."""
PathName = Annotated[str, "path"]
"""A path, or a name in its place; `~` is the home folder."""
MOST = 2**31 - 1
Count = Annotated[int, Whole(1, MOST)]
"""Of what is done again and again."""
CountOrZero = Annotated[int, Whole(0, MOST)]
MOST_ROWS = 2**20
MOST_VALUES = 2**12  # of a flag that takes several
Quantize = Literal["int8", "int4", "w8a8"]
"""How weights may be rounded: see `jaxgpt.model.quantized.quantize`."""
ComputeType = Literal["auto", "float32", "bfloat16"]
"""Of activations: see `jaxgpt.devices.compute_dtype`."""
Device = Literal["auto", "cpu", "cuda", "tpu"]
"""Where to run: see `jaxgpt.devices.start_devices`."""
Rows = Annotated[int, Whole(1, MOST_ROWS)]
"""Of what is held in memory together."""
Seed = Annotated[int, Whole(0, 2**32 - 1)]
Positive = Annotated[float, Real(lambda x: 0 < x < math.inf, "a positive number")]
NotNegative = Annotated[float, Real(lambda x: 0 <= x < math.inf, "a number from 0 up")]
Probability = Annotated[float, Real(lambda x: 0 <= x <= 1, "from 0 to 1")]
Share = Annotated[float, Real(lambda x: 0 < x < 1, "above 0 and below 1")]
Rate = Annotated[float, Real(lambda x: 0 <= x < 1, "in [0, 1)")]

Group = Literal[
    "run", "data", "model", "prompt", "sampling", "optimizer", "objective", "precision and devices", "logging"
]
"""The parts of `--help`, in this order; "run" is where none is declared."""


def flag(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    on_resume: Literal["may change", "fixed", "of the command"] = "may change",
    per_host: bool = False,
    positional: bool = False,
    required: bool = False,
    about_run: bool = False,
    group: Group | None = None,
) -> Any:
    """Declare a dataclass field that is a flag; its type says which values it takes.

    Args:
        default: its value where none is given; without one it is required.
        help: its help text.
        on_resume: whether a run that goes on may have another value; "of the command": the value belongs to a command
            line, and a resumed run does not take it over.
        per_host: the processes of one run may have different values, as paths differ from host to host.
        positional: it is written without its name.
        required: none will not do, and its dataclass refuses it, though a run that goes on may leave the flag out.
        about_run: it says something about a machine, a folder or what is shown, and nothing about the model that comes
            of a run: model cards leave it out.
        group: where `--help` shows it; None: where the dataclass that this one extends has it, or "run".
    """
    known = {
        "help": help,
        "on_resume": on_resume,
        "per_host": per_host,
        "positional": positional,
        "required": required,
        "about_run": about_run,
        "group": group,
    }
    return dataclasses.field(default=default, metadata=known)


def flags_where(record: Any, key: str, value: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's flags that were declared with this value of a keyword of `flag`."""
    return tuple(field.name for field in dataclasses.fields(record) if field.metadata.get(key) == value)


def switches(record: type) -> set[str]:
    """Return the names of a dataclass's flags that may stand alone, as their values are true and false."""
    return {name for name, hint in hints_of(record).items() if bool in kinds(hint)}


def check_ranges(record: object) -> None:
    """Make a record's values plain; raise a UsageError unless each is one that its type allows."""
    for name, hint in hints_of(type(record)).items():
        value, none = getattr(record, name), ", or none" if may_be_none(hint) else ""
        kind, *others = {*kinds(hint)} - {type(None)}
        if (value is None and none) or others:  # what may be of two types is looked at where it is used
            continue
        given: Any = value if takes_several(hint) and checks.several(value) else [value]
        found = tuple(_checked(name, one, kind, none) for one in itertools.islice(given, MOST_VALUES + 1))
        if len(found) > MOST_VALUES:
            raise checks.refusal(name, value, f"at most {MOST_VALUES} values{none}")
        object.__setattr__(record, name, found if takes_several(hint) else found[0])


def _checked(name: str, value: Any, kind: Any, none: str) -> Any:
    """Return a flag's value, or one of several, as what its type says; a UsageError if it is none."""
    if kind is bool:
        return checks.flag(name, value)
    if get_origin(kind) is Literal:
        return checks.choice(name, value, get_args(kind))
    if kind == PathName and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if plain(kind) is str:
        return checks.instance(name, value, str, f"a text{none}")
    bound = next((bound for bound in get_args(kind)[1:] if isinstance(bound, Real | Whole)), None)
    return value if bound is None else _within(name, value, bound, none)


def _within(name: str, value: Any, bound: Real | Whole, none: str) -> float | int:
    """Return a flag's value, or one of several, as a plain number; a UsageError if it is out of range."""
    if isinstance(bound, Real):
        number = checks.real(name, value, bound.words + none)
        if not bound.test(number):
            raise checks.refusal(name, value, bound.words + none)
        return number
    number = checks.whole(name, value, bound.least, wanted=f"a whole number from {bound.least} up{none}")
    return checks.whole(name, number, bound.least, bound.most, f"at most {bound.most}{none}")


@functools.cache
def hints_of(record: type) -> dict[str, Any]:
    """Return the types of a dataclass's flags, with their ranges."""
    return get_type_hints(record, include_extras=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value, or one of several, may have."""
    return tuple(get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in _alternatives(hint))


def takes_several(hint: Any) -> bool:
    """Return whether a flag of this type has several values."""
    return any(get_origin(kind) is tuple for kind in _alternatives(hint))


def may_be_none(hint: Any) -> bool:
    """Return whether a flag of this type may be none."""
    return type(None) in kinds(hint)


def plain(kind: Any) -> Any:
    """Return a type without its range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def describe(hint: Any) -> str:
    """Return a flag's type as `--help` shows it."""
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "none", PathName: "PATH"}
    return "|".join(
        "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else names.get(kind) or names[plain(kind)]
        for kind in dict.fromkeys(kinds(hint))
    )
