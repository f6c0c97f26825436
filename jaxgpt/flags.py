"""Command-line flags from a frozen dataclass: its fields are the flags, its defaults the only defaults.

Names may be written with `-` or `_`, values after a space or `=`. `--config FILE` (JSON or TOML) gives values that
flags then override. Nothing here imports JAX, so that a mistyped flag is an answer, not a wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxgpt.errors import RunError, UsageError, did_you_mean

T = TypeVar("T")


def flag(default: Any = dataclasses.MISSING, help: str = "", *, positional: bool = False) -> Any:
    """Declare a dataclass field with its help text; one without a default is required."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional})


def parse(
    record: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    base: Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]] = lambda given: ("", {}),
) -> T:
    """Build a `record` from a command line.

    Args:
        record: a dataclass with fields of type int, float, str, bool, Literal, or one of these or None; or of type
            tuple[str, ...] or None, for flags with several values.
        argv: arguments after the program's name; None for `sys.argv`.
        prog: the program's name.
        description: shown by `--help`.
        base: from what the command line and `--config` give, the name of a table and the table of values for what
            they don't, before the defaults.

    Raises:
        UsageError: an unknown flag or key (the nearest name is suggested), or a value of the wrong type.
    """
    declared: Any = record  # a TypeVar has no bound that says "a dataclass"
    fields = {field.name: field for field in dataclasses.fields(declared)}
    hints = get_type_hints(record)
    parser = _Parser(prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="JSON or TOML file of flags; flags given here win")
    for name, field in fields.items():
        read = functools.partial(_read, name, hints[name])
        text = field.metadata.get("help", "").replace("%", "%%")
        if field.metadata.get("positional"):
            # Whether it is missing is known only after --config has been read.
            parser.add_argument(name, nargs="?", type=read, metavar=name.upper(), help=text)
            continue
        if field.default is not dataclasses.MISSING:
            text += f" (default: {'none' if field.default is None else field.default})"
        several = {"nargs": "+", "action": _Tuple} if _is_tuple(hints[name]) else {}
        parser.add_argument(f"--{name}", type=read, metavar=_describe(hints[name]), help=text, **several)
    switches = {f"--{name}" for name, hint in hints.items() if bool in _kinds(hint)}
    given, unknown = parser.parse_known_args(_normalised(sys.argv[1:] if argv is None else argv, switches))
    if unknown:
        raise UsageError(_unknown(unknown[0], fields))
    values = vars(given)
    if "config" in values:
        values = _read_file(values.pop("config"), fields, hints) | values
    values = _read_table(*base(values), fields, hints) | values
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise UsageError(f"{name.upper() if field.metadata['positional'] else '--' + name} is missing; see --help")
    return record(**values)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Make a function the whole of a command: errors meant for the user become a line and an exit code."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except (UsageError, RunError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
            sys.stderr.close()
            sys.exit(1)
        except RuntimeError as error:  # JAX's, which is not imported here
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            print(f"error: out of device memory: {reason}; ask for less, or for more devices", file=sys.stderr)
            sys.exit(1)
        except OSError as error:  # a full disk, say, wherever it was met
            print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
            sys.exit(1)

    return wrapped


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if None in values and len(values) > 1:
            parser.error(f"{option_string}: none is no value beside others")
        setattr(namespace, self.dest, None if None in values else tuple(values))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _normalised(argv: Sequence[str], switches: set[str]) -> list[str]:
    """Write `--batch-size=8` as `--batch_size=8`, and a bare `--bias` as `--bias=true`; after `--` everything stays."""
    out, names = [], True
    for word in argv:
        names = names and word != "--"
        if names and word.startswith("--"):
            name, equals, value = word.partition("=")
            name = "--" + name[2:].replace("-", "_")
            word = f"{name}=true" if name in switches and not equals else name + equals + value
        out.append(word)
    return out


def _unknown(word: str, fields: dict[str, Any]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; see --help"
    name = word.partition("=")[0]
    return f"unknown flag {name}{did_you_mean(name, ['--' + known for known in fields])}"


def _read_file(path: str, fields: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Read `--config FILE`: a table of flags, or a run's config.json, whose flags stand under "flags"."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.endswith(".toml") else "JSON"
        raise UsageError(f"--config {path}: not valid {kind}: {error}") from None
    if isinstance(table, dict) and isinstance(table.get("flags"), dict):
        table = table["flags"]
    if not isinstance(table, dict):
        raise UsageError(f"--config {path}: holds a {type(table).__name__}; it must be a table of flags")
    return _read_table(f"--config {path}", table, fields, hints)


def _read_table(where: str, table: Mapping[str, Any], fields: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(name, fields)}")
        if isinstance(value, list) and _is_tuple(hints[name]) and all(isinstance(one, str) for one in value):
            values[name] = tuple(value)
            continue
        if isinstance(value, dict | list):
            raise UsageError(f"{where}: {key} is {value!r}; it must be {_describe(hints[name])}")
        try:
            found = _read(name, hints[name], "none" if value is None else str(value))
            values[name] = (found,) if _is_tuple(hints[name]) and found is not None else found
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {key}: {error}") from None
    return values


def _read(name: str, hint: Any, text: str) -> Any:
    """Turn a flag's text into a value of its type."""
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        try:
            if get_origin(kind) is Literal:
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if get_origin(kind) is tuple:
                return text
            if kind is bool:
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            if kind is not type(None):
                return kind(text)
        except (KeyError, StopIteration, ValueError):
            continue
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    raise argparse.ArgumentTypeError(f"{text!r} is not {_describe(hint)}{did_you_mean(text, choices)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_tuple(hint: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in _kinds(hint))


def _describe(hint: Any) -> str:
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "none", tuple: "TEXT"}
    return "|".join(
        "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else names[get_origin(kind) or kind]
        for kind in _kinds(hint)
    )
