"""Legacy Flax weights, `flax_model.msgpack`: the same model, its linear layers stored the other way round.

The file is what `flax.serialization` makes of dictionaries of arrays, one inside another, in msgpack. Of its values
only the headers are read here; arrays are passed over, and read later, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.files import regular
from jaxgpt.hf.tensors import FLOAT_BYTES, Tensor, transposed

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
"""Last parts of names that are others in PyTorch."""
NAME_LIMIT, DEPTH_LIMIT, RANK_LIMIT = 100, 8, 4
ARRAY = 1
"""The type of msgpack's extensions that flax gives to arrays."""
# A header's first byte: the value's kind, and how many bytes its length, its count or the number itself takes.
LONG = {
    **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xCC + i: ("number", 1 << i) for i in range(4)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("dictionary", 2 << i) for i in range(2)},
}
# Small values have both in the one byte.
SMALL = {
    **{i: ("number", i) for i in range(0x80)},
    **{0x80 + i: ("dictionary", i) for i in range(16)},
    **{0x90 + i: ("list", i) for i in range(16)},
    **{0xA0 + i: ("text", i) for i in range(32)},
    **{0xD4 + i: ("extension", 1 << i) for i in range(5)},
}


def open_flax(file: Path) -> list[Tensor]:
    """Return the tensors of a file by HF's names, and as HF stores them.

    Raises:
        UsageError: it is something else, or cut.
    """
    try:
        with regular(file).open("rb") as stream:
            found = list(_tensors(stream, file, ()))
            if stream.tell() != file.stat().st_size:
                raise ValueError("it is shorter or longer than what it holds")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{file}: not a whole file of Flax's weights: {error}") from None
    return found


def _tensors(stream: BinaryIO, file: Path, path: tuple[str, ...]) -> Iterator[Tensor]:
    """Yield what the next value holds, which lies at this path: an array, or dictionaries of them."""
    kind, size = _header(stream)
    if kind == "dictionary" and len(path) < DEPTH_LIMIT:
        for _ in range(size):
            yield from _tensors(stream, file, (*path, _text(stream)))
    elif kind == "extension" and path and _take(stream, 1)[0] == ARRAY:
        yield _array(stream, file, path, size)
    else:
        raise ValueError(f"{'/'.join(path) or 'it'} is neither an array nor a dictionary of arrays")


def _array(stream: BinaryIO, file: Path, path: tuple[str, ...], size: int) -> Tensor:
    """Return the array that comes next, of so many bytes: a list of its shape, its dtype's name and its values."""
    end = stream.tell() + size
    entries, rank = _expect(stream, "list"), _expect(stream, "list")
    if entries != 3 or rank > RANK_LIMIT:
        raise ValueError(f"{'/'.join(path)} is no array of at most {RANK_LIMIT} axes")
    shape, dtype = tuple(_expect(stream, "number") for _ in range(rank)), _text(stream)
    length, start = _expect(stream, "bytes"), stream.tell()
    code = DTYPES.get(dtype, dtype)  # others are refused where the tensors are looked at
    if start + length != end or code in FLOAT_BYTES and length != math.prod(shape) * FLOAT_BYTES[code]:
        raise ValueError(f"{'/'.join(path)} has {length} bytes for the shape {shape} in {dtype}")
    stream.seek(end)
    name = ".".join((*path[:-1], LEAVES.get(path[-1], path[-1])))
    tensor = Tensor(name, file, shape, code, partial(_values, file, start, shape, dtype))
    return transposed(tensor) if path[-1] == "kernel" else tensor


def _values(file: Path, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.fromfile(file, jnp.dtype(dtype), math.prod(shape), offset=start).reshape(shape)


def _header(stream: BinaryIO) -> tuple[str, int]:
    """Return the kind of the next value, and its length, its count of entries, or the number that it is."""
    first = _take(stream, 1)[0]
    kind, number = SMALL.get(first) or LONG.get(first) or ("other", 0)
    return kind, int.from_bytes(_take(stream, number), "big") if first in LONG else number


def _expect(stream: BinaryIO, expected: str) -> int:
    kind, number = _header(stream)
    if kind != expected:
        raise ValueError(f"a value before byte {stream.tell()} must be a {expected}")
    return number


def _text(stream: BinaryIO) -> str:
    if (length := _expect(stream, "text")) > NAME_LIMIT:
        raise ValueError(f"a name of {length} bytes before byte {stream.tell()}")
    return _take(stream, length).decode()


def _take(stream: BinaryIO, count: int) -> bytes:
    if len(found := stream.read(count)) < count:
        raise ValueError("it is cut")
    return found
