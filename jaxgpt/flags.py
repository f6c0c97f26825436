"""Command-line flags from a frozen dataclass: its fields are the flags, its defaults the only defaults.

Names may be written with `-` or `_`, values after a space or `=`. `--config FILE` (JSON or TOML, or the name of a
recipe in `configs/`) gives values that flags then override. Nothing here imports JAX, so that a mistyped flag is an
answer, not a wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import re
import reprlib
import sys
import tomllib
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxgpt import checks
from jaxgpt.errors import UsageError, did_you_mean, report
from jaxgpt.files import regular

T = TypeVar("T")


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
Count = Annotated[int, Whole(1, 2**31 - 1)]
"""Of what is done again and again."""
CountOrZero = Annotated[int, Whole(0, 2**31 - 1)]
MOST_ROWS = 2**20
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

RECIPES = Path(__file__).parent / "configs"

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_OF_EVERY_COMMAND: dict[str, Any] = {"help": bool, "version": bool, "config": PathName}


def flag(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    on_resume: Literal["may change", "fixed", "of the command"] = "may change",
    per_host: bool = False,
    positional: bool = False,
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
        group: where `--help` shows it; None: where the dataclass that this one extends has it, or "run".
    """
    known = {"help": help, "on_resume": on_resume, "per_host": per_host, "positional": positional, "group": group}
    return dataclasses.field(default=default, metadata=known)


def flags_where(record: Any, key: str, value: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's flags that were declared with this value of a keyword of `flag`."""
    return tuple(field.name for field in dataclasses.fields(record) if field.metadata.get(key) == value)


def switches(record: type) -> set[str]:
    """Return the names of a dataclass's flags that may stand alone, as their values are true and false."""
    return {name for name, hint in _hints(record).items() if bool in _kinds(hint)}


def check_ranges(record: object) -> None:
    """Make a record's numbers and truth values plain; raise a UsageError unless each is one that its type allows."""
    for name, hint in _hints(type(record)).items():
        value, none = getattr(record, name), ", or none" if _may_be_none(hint) else ""
        bounds = [bound for kind in _kinds(hint) for bound in get_args(kind)[1:]]
        if value is None and none:
            continue
        if bool in _kinds(hint):
            object.__setattr__(record, name, checks.flag(name, value))
        for bound in bounds:
            if isinstance(bound, Real):
                number = checks.real(name, value, bound.words + none)
                if not bound.test(number):
                    raise checks.refusal(name, value, bound.words + none)
                object.__setattr__(record, name, number)
            elif isinstance(bound, Whole):
                number = checks.whole(name, value, bound.least, wanted=f"a whole number from {bound.least} up{none}")
                checks.whole(name, number, bound.least, bound.most, f"at most {bound.most}{none}")
                object.__setattr__(record, name, number)


def parse(
    record: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    examples: str = "",
    base: Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]] = lambda given: ("", {}),
) -> T:
    """Build a `record` from a command line.

    Args:
        record: a dataclass with fields of type int, float, str, bool, Literal, a type from above, or one of these or
            None; or of type tuple[str, ...] or None, for flags with several values.
        argv: arguments after the program's name; None for `sys.argv`.
        prog: the program's name.
        description: shown by `--help` first.
        examples: shown by `--help` last.
        base: from what the command line and `--config` give, the name of a table and the table of values for what
            they don't, before the defaults.

    Raises:
        UsageError: an unknown flag or key (the nearest name is suggested), a value of the wrong type, or two values
            for a flag that takes one.
    """
    declared: Any = record  # a TypeVar has no bound that says "a dataclass"
    fields = {field.name: field for field in dataclasses.fields(declared)}
    hints = _hints(record)
    places = [name for name, field in fields.items() if field.metadata.get("positional")]
    kinds = hints | _OF_EVERY_COMMAND
    texts = _split(sys.argv[1:] if argv is None else argv, kinds, places)
    if "help" in texts:
        _help(prog, description, examples, declared).print_help()
        sys.exit(0)
    if "version" in texts:
        print(f"jaxgpt {_version()}")
        sys.exit(0)
    shown = {name: name.upper() if name in places else f"--{name}" for name in kinds}
    values = {name: _value(shown[name], kinds[name], found) for name, found in texts.items()}
    if "config" in values:
        values = _read_file(values.pop("config"), fields, hints) | values
    values = _read_table(*base(values), fields, hints) | values
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise UsageError(f"{shown[name]} is missing; see --help")
    return record(**values)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Make a function the whole of a command: errors meant for the user become a line and an exit code."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except Exception as error:
            if (code := report(error)) is None:
                raise
            sys.exit(code)

    return wrapped


def _version() -> str:
    try:
        return importlib.metadata.version("jaxgpt")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


def _help(prog: str, description: str, examples: str, record: Any) -> argparse.ArgumentParser:
    """Return what prints `--help`; command lines are read by `_split` and `_value`."""
    places = " ".join(name.upper() for name in flags_where(record, "positional", True))
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} {places}{' ' if places else ''}[flags]",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in get_args(Group)}
    first, hints = groups["run"], _hints(record)
    first.add_argument("-h", "--help", action="store_true", help="show this and exit")
    first.add_argument("--version", action="store_true", help="show the version and exit")
    first.add_argument(
        "--config", metavar="PATH", help="JSON or TOML file of flags, or the name of a recipe; flags given here win"
    )
    for field in dataclasses.fields(record):
        text, known = field.metadata["help"].replace("%", "%%"), groups[_group(record, field.name)]
        if field.metadata["positional"]:
            known.add_argument(field.name, metavar=field.name.upper(), help=text)
            continue
        if field.default is not dataclasses.MISSING:
            text += f" (default: {'none' if field.default is None else field.default})"
        several = "+" if _is_tuple(hints[field.name]) else None
        known.add_argument(f"--{field.name}", metavar=_describe(hints[field.name]), help=text, nargs=several)
    return parser


def _group(record: type, name: str) -> Group:
    """Return where `--help` shows a flag: as the nearest of the dataclasses says that declare it and say so."""
    tables = (vars(one).get("__dataclass_fields__", {}) for one in record.__mro__)
    said = (table[name].metadata["group"] for table in tables if name in table)
    return next(filter(None, said), "run")


def _split(argv: Sequence[str], kinds: Mapping[str, Any], places: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts that each flag, and each place in the order of `places`, is given.

    Not argparse, which takes a value that begins with a dash for a flag, and the last of two values in silence.
    """
    found: dict[str, list[str]] = {}
    words, free, flags = deque(argv), deque(places), True
    while words:
        word = words.popleft()
        if flags and word == "--":
            flags = False
        elif not flags or not word.startswith("-") or word == "-":
            if not free:
                raise UsageError(f"unexpected argument {word!r}; see --help")
            place = free[0] if _is_tuple(kinds[free[0]]) else free.popleft()  # one for several values is the last
            found[place] = [*found.get(place, []), word]
        else:
            name = _name(word)
            if name not in kinds or name in places:
                raise UsageError(f"unknown flag {word.partition('=')[0]}{did_you_mean(name, kinds, '--')}")
            if name in found and not _is_tuple(kinds[name]):
                raise UsageError(f"--{name} is given twice; it takes one value")
            found[name] = found.get(name, []) + _texts(name, word, words, kinds)
    return found


def _name(word: str) -> str:
    name = word.partition("=")[0]
    return "help" if name == "-h" else name.removeprefix("--").replace("-", "_")


def _texts(name: str, word: str, words: deque[str], kinds: Mapping[str, Any]) -> list[str]:
    """Return a flag's texts, those in the words behind it among them, which are taken away."""
    _, equals, text = word.partition("=")
    if equals:
        return [text]
    if bool in _kinds(kinds[name]):  # alone it says true
        said = (*_BOOLEANS, "none") if _may_be_none(kinds[name]) else _BOOLEANS
        return [words.popleft() if words and words[0].lower() in said else "true"]
    texts: list[str] = []
    while words and not _is_flag(words[0], name, kinds) and (not texts or _is_tuple(kinds[name])):
        texts.append(words.popleft())
    if not texts:
        hint = f"; if {words[0]} is the value, write --{name}={words[0]}" if words else ""
        raise UsageError(f"--{name}: a value is missing{hint}")
    return texts


def _is_flag(word: str, before: str, kinds: Mapping[str, Any]) -> bool:
    """Return whether a word is a flag, be it misspelt, and not a value of the flag before it."""
    if word == "--" or (word.startswith("-") and _name(word) in kinds):
        return True
    misspelt = PathName in _kinds(kinds[before]) or did_you_mean(_name(word), kinds)
    return bool(misspelt and re.fullmatch(r"--[a-zA-Z][\w-]*(=.*)?", word, re.DOTALL))


def _read_file(path: str, fields: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Read `--config FILE`: a table of flags, or a run's config.json, whose flags stand under "flags".

    A name that is no file's is one of the recipes that come with the package.
    """
    known = sorted(file.stem for file in RECIPES.glob("*.toml"))
    if path in known and not os.path.exists(path):
        path = str(RECIPES / f"{path}.toml")
    try:
        text = regular(path).read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.endswith(".toml") else json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        hint = f"; it must be a file, or one of {', '.join(known)}{did_you_mean(path, known)}"
        named = isinstance(error, FileNotFoundError) and re.fullmatch(r"[\w-]+", path)
        raise UsageError(f"--config {path}: {error.strerror}{hint if named else ''}") from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise UsageError(f"--config {path}: not valid {kind}: {error}") from None
    if isinstance(table, dict) and isinstance(table.get("flags"), dict):
        table = table["flags"]
    if not isinstance(table, dict):
        raise UsageError(f"--config {path}: holds a {type(table).__name__}; it must be a table of flags")
    return _read_table(f"--config {path}", table, fields, hints)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object whose keys all differ; json itself keeps the last of two values."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return table


def _read_table(where: str, table: Mapping[str, Any], fields: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(name, fields)}")
        if name in values:
            raise UsageError(f"{where}: {name} is given twice; it takes one value")
        listed = isinstance(value, list) and _is_tuple(hints[name]) and all(isinstance(one, str) for one in value)
        texts = value if listed else ["none" if value is None else str(value)]
        if isinstance(value, dict | list | None) and not listed and not (value is None and _may_be_none(hints[name])):
            raise UsageError(f"{where}: {key} is {reprlib.repr(value)}; it must be {_describe(hints[name])}")
        values[name] = _value(f"{where}: {key}", hints[name], texts)
    return values


def _value(what: str, hint: Any, texts: Sequence[str]) -> Any:
    """Turn the texts that a flag is given into its value."""
    found = tuple(_read(what, hint, text) for text in texts)
    if not _is_tuple(hint):
        return found[0]
    if None in found and len(found) > 1:
        raise UsageError(f"{what}: none is no value beside others")
    return None if None in found else found


def _read(what: str, hint: Any, text: str) -> Any:
    """Turn a text into a value of a flag's type, or into one of several."""
    if _may_be_none(hint) and text.lower() == "none":
        return None
    for kind in _kinds(hint):
        if kind in (Name, PathName):
            return _not_empty(what, text, is_path=kind == PathName)
        try:
            if get_origin(kind) is Literal:
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if kind is not type(None):
                return _BOOLEANS[text.lower()] if kind is bool else _plain(kind)(text)
        except (KeyError, StopIteration, ValueError):
            continue
    choices = [str(choice) for kind in _kinds(hint) if get_origin(kind) is Literal for choice in get_args(kind)]
    raise UsageError(f"{what}: {text!r} is not {_describe(hint)}{did_you_mean(text, choices)}")


def _not_empty(what: str, text: str, *, is_path: bool) -> str:
    if not text:
        raise UsageError(f"{what} is empty, perhaps by a variable that is not set; give it a value, or leave it out")
    path = os.path.expanduser(text) if is_path else text
    if is_path and path.startswith("~"):
        raise UsageError(f"{what} {text}: there is no such home folder; if it is the name of a file, write ./{text}")
    return path


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value, or one of several, may have."""
    return tuple(get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in _alternatives(hint))


def _is_tuple(hint: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in _alternatives(hint))


def _may_be_none(hint: Any) -> bool:
    return type(None) in _kinds(hint)


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _describe(hint: Any) -> str:
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "none", PathName: "PATH"}
    return "|".join(
        "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else names.get(kind) or names[_plain(kind)]
        for kind in _kinds(hint)
    )
