"""A command line → a record of flags: words, `--config FILE` and the defaults; and `--help`.

Names may be written with `-` or `_`, values after a space or `=`. `--config FILE` (JSON or TOML, or the name of a
recipe in `configs/`) gives values that flags then override. Nothing here imports JAX, so that a mistyped flag is an
answer, not a wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import reprlib
import sys
import tomllib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from jaxgpt.commands import as_called
from jaxgpt.errors import UsageError, did_you_mean, report
from jaxgpt.files import regular
from jaxgpt.flags import (
    Group,
    Name,
    PathName,
    describe,
    flags_where,
    hints_of,
    kinds,
    may_be_none,
    plain,
    takes_several,
)

T = TypeVar("T")
RECIPES = Path(__file__).parent / "configs"

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_OF_EVERY_COMMAND: dict[str, Any] = {"help": bool, "version": bool, "config": PathName}


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
    hints = hints_of(record)
    places = [name for name, field in fields.items() if field.metadata.get("positional")]
    types = hints | _OF_EVERY_COMMAND
    texts = _split(sys.argv[1:] if argv is None else argv, types, places)
    if "help" in texts:
        print(as_called(_help(prog, description, examples, declared).format_help()), end="")
        sys.exit(0)
    if "version" in texts:
        print(f"jaxgpt {_version()}")
        sys.exit(0)
    shown = {name: name.upper() if name in places else f"--{name}" for name in types}
    values = {name: _value(shown[name], types[name], found) for name, found in texts.items()}
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
            from jaxgpt.progress import close_bars  # which --help does not wait for

            close_bars()
            if (code := report(error)) is None:
                raise
            sys.exit(code)

    return wrapped


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # a parser of e-mail comes with it

    try:
        return version("jaxgpt")
    except PackageNotFoundError:
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
    first, hints = groups["run"], hints_of(record)
    first.add_argument("-h", "--help", action="store_true", help="show this and exit")
    first.add_argument("--version", action="store_true", help="show the version and exit")
    first.add_argument(
        "--config", metavar="PATH", help="JSON or TOML file of flags, or the name of a recipe; flags given here win"
    )
    for field in dataclasses.fields(record):
        text, known = field.metadata["help"].replace("%", "%%"), groups[_said(record, field.name, "group") or "run"]
        if field.metadata["positional"]:
            known.add_argument(field.name, metavar=field.name.upper(), help=text)
            continue
        if _said(record, field.name, "required"):
            text += " (required)"
        elif field.default is not dataclasses.MISSING:
            text += f" (default: {'none' if field.default is None else field.default})"
        several = "+" if takes_several(hints[field.name]) else None
        known.add_argument(f"--{field.name}", metavar=describe(hints[field.name]), help=text, nargs=several)
    return parser


def _said(record: type, name: str, key: str) -> Any:
    """Return what the nearest of the dataclasses that declare a flag, and say so, says of it by a keyword of `flag`."""
    tables = (vars(one).get("__dataclass_fields__", {}) for one in record.__mro__)
    return next(filter(None, (table[name].metadata[key] for table in tables if name in table)), None)


def _split(argv: Sequence[str], types: Mapping[str, Any], places: Sequence[str]) -> dict[str, list[str]]:
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
            place = free[0] if takes_several(types[free[0]]) else free.popleft()  # one for several values is the last
            found[place] = [*found.get(place, []), word]
        else:
            name = _name(word)
            if name not in types or name in places:
                raise UsageError(f"unknown flag {word.partition('=')[0]}{did_you_mean(name, types, '--')}")
            if name in found and not takes_several(types[name]):
                raise UsageError(f"--{name} is given twice; it takes one value")
            found[name] = found.get(name, []) + _texts(name, word, words, types)
    return found


def _name(word: str) -> str:
    name = word.partition("=")[0]
    return "help" if name == "-h" else name.removeprefix("--").replace("-", "_")


def _texts(name: str, word: str, words: deque[str], types: Mapping[str, Any]) -> list[str]:
    """Return a flag's texts, those in the words behind it among them, which are taken away."""
    _, equals, text = word.partition("=")
    if equals:
        return [text]
    if bool in kinds(types[name]):  # alone it says true
        said = (*_BOOLEANS, "none") if may_be_none(types[name]) else _BOOLEANS
        return [words.popleft() if words and words[0].lower() in said else "true"]
    texts: list[str] = []
    while words and not _is_flag(words[0], name, types) and (not texts or takes_several(types[name])):
        texts.append(words.popleft())
    if not texts:
        hint = f"; if {words[0]} is the value, write --{name}={words[0]}" if words else ""
        raise UsageError(f"--{name}: a value is missing{hint}")
    return texts


def _is_flag(word: str, before: str, types: Mapping[str, Any]) -> bool:
    """Return whether a word is a flag, be it misspelt, and not a value of the flag before it."""
    if word == "--" or (word.startswith("-") and _name(word) in types):
        return True
    misspelt = PathName in kinds(types[before]) or did_you_mean(_name(word), types)
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
        listed = isinstance(value, list) and takes_several(hints[name])
        listed = listed and all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in value)
        texts = list(map(str, value)) if listed else ["none" if value is None else str(value)]
        if isinstance(value, dict | list | None) and not listed and not (value is None and may_be_none(hints[name])):
            raise UsageError(f"{where}: {key} is {reprlib.repr(value)}; it must be {describe(hints[name])}")
        values[name] = _value(f"{where}: {key}", hints[name], texts)
    return values


def _value(what: str, hint: Any, texts: Sequence[str]) -> Any:
    """Turn the texts that a flag is given into its value."""
    found = tuple(_read(what, hint, text) for text in texts)
    if not takes_several(hint):
        return found[0]
    if None in found and len(found) > 1:
        raise UsageError(f"{what}: none is no value beside others")
    return None if None in found else found


def _read(what: str, hint: Any, text: str) -> Any:
    """Turn a text into a value of a flag's type, or into one of several."""
    if may_be_none(hint) and text.lower() == "none":
        return None
    for kind in kinds(hint):
        if kind in (Name, PathName):
            return _not_empty(what, text, is_path=kind == PathName)
        try:
            if get_origin(kind) is Literal:
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if kind is not type(None):
                return _BOOLEANS[text.lower()] if kind is bool else plain(kind)(text)
        except (KeyError, StopIteration, ValueError):
            continue
    choices = [str(choice) for kind in kinds(hint) if get_origin(kind) is Literal for choice in get_args(kind)]
    raise UsageError(f"{what}: {text!r} is not {describe(hint)}{did_you_mean(text, choices)}")


def _not_empty(what: str, text: str, *, is_path: bool) -> str:
    if not text:
        raise UsageError(f"{what} is empty, perhaps by a variable that is not set; give it a value, or leave it out")
    path = os.path.expanduser(text) if is_path else text
    if is_path and path.startswith("~"):
        raise UsageError(f"{what} {text}: there is no such home folder; if it is the name of a file, write ./{text}")
    return path
