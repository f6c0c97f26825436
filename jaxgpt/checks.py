"""Arguments of the library, turned into plain numbers, paths and arrays, or refused in one line.

NumPy's and JAX's numbers and arrays count as Python's. What is no whole number is never rounded to one, and nothing is
passed on whose type would only be noticed by a traceback somewhere below. Nothing here imports JAX, and flags, which
come from words, are checked without NumPy, too: it takes half of the time of a `--help`.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeVar

from jaxgpt.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

Kind = TypeVar("Kind")
Ids = Sequence[SupportsIndex] | Any
"""Token ids: whole numbers in a list or tuple, or an array of one axis, NumPy's or JAX's."""
IdLists = Sequence[Ids] | Any
"""Lists of token ids of unequal lengths, or an array of two axes, NumPy's or JAX's."""

FLOATS = ("float32", "bfloat16", "float16")
# More ids than one call is ever about; refused before memory is asked for.
MOST_IDS = 2**28
MOST_READ = 2**24  # of an iterator, which does not say how many there are


def shown(value: Any) -> str:
    """Return a value for a message: short, on one line, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign type's own, or Python's for an integer of thousands of digits
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def refusal(name: str, value: Any, wanted: str) -> UsageError:
    """Return the error that says what an argument is, and what it must be."""
    return UsageError(f"{name} is {shown(value)}; it must be {wanted}")


def whole(name: str, value: Any, low: int = 0, high: int | None = None, wanted: str | None = None) -> int:
    """Return a whole number from `low` up, or to `high`; `wanted` says so in other words.

    Raises:
        UsageError: it is out of range or none: a truth value, a text, a float.
    """
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:  # an array of several, or of floats
            pass
    if number is None or number < low or (high is not None and number > high):
        raise refusal(name, value, wanted or f"a whole number from {low} {'up' if high is None else f'to {high}'}")
    return number


def real(name: str, value: Any, wanted: str) -> float:
    """Return a number, whole or not; NaN passes, and fails its caller's comparisons.

    Raises:
        UsageError: it is none: a truth value, a text, an array of several.
    """
    scalar = isinstance(value, SupportsFloat | SupportsIndex) and getattr(value, "shape", ()) == ()
    if not scalar or _is_truth(value) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise refusal(name, value, wanted)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise refusal(name, value, wanted) from None


def flag(name: str, value: Any) -> bool:
    """Return a truth value; a text such as "false", which Python takes for true, is refused."""
    if not _is_truth(value):
        raise refusal(name, value, "True or False")
    return bool(value)


def _is_truth(value: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")  # before it is imported nothing is of its types
    return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))


def choice(name: str, value: Any, valid: Collection[str]) -> str:
    """Return one of the valid texts.

    Raises:
        UsageError: it is another; the message has the nearest.
    """
    if not isinstance(value, str) or value not in valid:
        hint = did_you_mean(value, valid) if isinstance(value, str) else ""
        raise refusal(name, value, f"one of {', '.join(valid)}{hint}")
    return value


def floating(name: str, value: Any) -> str:
    """Return the name of a type of floats that models are computed and stored in: JAX's or NumPy's, or its name."""
    import numpy as np

    found = value if isinstance(value, str) else ""
    if isinstance(value, type | np.dtype):
        with contextlib.suppress(TypeError):
            found = np.dtype(value).name
    if found not in FLOATS:
        raise refusal(name, value, f"one of {', '.join(FLOATS)}")
    return found


def is_floating(value: Any) -> bool:
    """Return whether a value is an array of floats, NumPy's or JAX's."""
    import numpy as np

    try:
        return np.dtype(getattr(value, "dtype", None)).name in (*FLOATS, "float64") and hasattr(value, "shape")
    except TypeError:  # JAX's random keys
        return False


def instance(name: str, value: Any, kind: type[Kind] | tuple[type[Kind], ...], wanted: str) -> Kind:
    """Return a value of this type; `wanted` says which, and where one comes from."""
    if not isinstance(value, kind):
        raise refusal(name, value, wanted)
    return value


def text(name: str, value: Any) -> str:
    """Return a text."""
    return instance(name, value, str, "a text")


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Return the texts of a list, none of them empty; a single text is no list of its letters."""
    wanted = "a list of texts, none of them empty"
    if not several(value):
        raise refusal(name, value, wanted)
    found = []
    for one in read(name, value):
        if not isinstance(one, str) or not one:
            raise refusal(name, value, wanted)
        found.append(one)
    return tuple(found)


def several(value: Any) -> bool:
    """Return whether a value is a list or an array, and not a single one."""
    listed = isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes)
    return listed or getattr(value, "shape", ()) != ()


def read(name: str, value: Any) -> Any:
    """Return what an iterator gives, in a list, and another value as it is.

    Raises:
        UsageError: it gives more than anyone means, as one without an end does.
    """
    if not isinstance(value, Iterator):
        return value
    found = list(itertools.islice(value, MOST_READ + 1))
    if len(found) > MOST_READ:
        raise UsageError(f"{name} is an iterator of more than {MOST_READ:,} items; it must be a list or an array")
    return found


def records(name: str, value: Any, kind: type[Kind], least: int = 0) -> list[Kind]:
    """Return records of a type, in a list.

    Raises:
        UsageError: it is no list or iterator of them, or there are fewer than `least`; see also `read`.
    """
    wanted = f"a list of {kind.__name__}" + (f", {least} or more" if least else "")
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise refusal(name, value, wanted)
    found = []
    for i, one in enumerate(read(name, value if isinstance(value, Sequence) else iter(value))):
        found.append(instance(f"{name}[{i}]", one, kind, f"of type {kind.__name__}"))
    if len(found) < least:
        raise refusal(name, value, wanted)
    return found


def path(name: str, value: Any, wanted: str = "a path") -> Path:
    """Return a path that a file system can have, whether or not something is there."""
    try:
        if not isinstance(value, str | os.PathLike) or os.fspath(value) == "":
            raise refusal(name, value, wanted)
        found = Path(os.fsdecode(value))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.lstat()
    except OSError as error:  # too long a name, or a folder on the way that can't be read
        raise UsageError(f"{name} {shown(value)}: {error.strerror}") from None
    except (TypeError, ValueError) as error:  # a NUL, lone surrogates
        raise error if isinstance(error, UsageError) else refusal(name, value, wanted) from None
    return found


def ids(name: str, value: Any, wanted: str = "a list of token ids, or an array of one axis") -> np.ndarray:
    """Return whole numbers as an array of one axis.

    Raises:
        UsageError: it is a text, a number or an array of more axes, or one of its values is no whole number.
    """
    import numpy as np

    try:
        value = read(name, value)
        if isinstance(value, Sequence) and several(value) and len(value) <= MOST_IDS:
            # By types: NumPy would take a truth value for a number, and a float would make all of them floats.
            plain = all(issubclass(kind, int | np.integer) and kind is not bool for kind in set(map(type, value)))
            array = np.array(value if plain else [whole(f"{name}[{i}]", x) for i, x in enumerate(value)], np.int64)
        elif hasattr(value, "__array__"):
            array = np.asarray(value)
        else:
            raise refusal(name, value, wanted)
    except UsageError:
        raise
    except Exception:  # beyond 64 bits; or a foreign array's own, such as JAX's while it traces
        raise refusal(name, value, wanted) from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UsageError(f"{name} is an array of {array.dtype} of shape {array.shape}; it must be {wanted}")
    return array


def below(name: str, ids: np.ndarray, size: int) -> None:
    """Refuse an id that a model has not: XLA would clamp it, wrap it or make NaN of it, silently.

    Args:
        name: what has the ids, for the message.
        ids: (N,) whole numbers.
        size: the model's vocabulary.

    Raises:
        UsageError: naming the first id that is not from 0 to `size` - 1.
    """
    for token in ids[(ids < 0) | (ids >= size)]:
        raise UsageError(f"{name} has the id {token}; the model's are 0 to {size - 1}")


def rows(name: str, value: Any) -> list[np.ndarray]:
    """Return several lists of token ids, of unequal lengths; an array of two axes is one too.

    Raises:
        UsageError: it is a text, or a single list, or what is in it is no list of ids.
    """
    import numpy as np

    each = "a list of token ids, as a tokenizer's encode gives them"
    wanted = f"a list of lists of ids, or an array of two axes; a single one is [[1, 2, 3]], and a text is no {name}"
    if hasattr(value, "__array__"):
        try:
            value = list(np.asarray(value))
        except Exception:  # of no axis; or a foreign array's own
            raise refusal(name, value, wanted) from None
    if not several(value):
        raise refusal(name, value, wanted)
    found = []
    for i, one in enumerate(read(name, value)):
        if not several(one):
            raise refusal(name, value, wanted)
        found.append(ids(f"{name.removesuffix('s')} {i}", one, each))
    return found
