"""Arguments: whatever stands for a number, a path or ids becomes one, and nothing else passes."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import checks
from jaxgpt.errors import UsageError

pytestmark = pytest.mark.usefixtures("unchecked_types")
ARRAYS = [np.asarray, jnp.asarray, list, tuple, iter]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.array(3)])
def test_whole_numbers(value):
    found = checks.whole("x", value, 1, 3)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [3.0, np.float32(3), jnp.array(3.0), np.array([3]), True, np.True_, "3", None, 4, 0])
def test_what_is_no_whole_number_or_out_of_range(value):
    with pytest.raises(UsageError, match="^x is .*; it must be a whole number from 1 to 3$"):
        checks.whole("x", value, 1, 3)


@pytest.mark.parametrize("value", [2, 2.0, np.float16(2), np.int8(2), np.array(2.0), jnp.array(2), jnp.bfloat16(2)])
def test_numbers(value):
    found = checks.real("x", value, "a number")
    assert found == 2 and type(found) is float


@pytest.mark.parametrize("value", ["2", b"2", None, True, 2j, np.complex64(2), np.array([2.0]), [2], 10**400])
def test_what_is_no_number(value):
    with pytest.raises(UsageError, match="^x is .*; it must be a number$"):
        checks.real("x", value, "a number")


@pytest.mark.parametrize("array", ARRAYS)
def test_ids(array):
    assert checks.ids("ids", array([5, 0, -7])).tolist() == [5, 0, -7]
    assert checks.ids("ids", array([])).tolist() == [] or array in (np.asarray, jnp.asarray)


@pytest.mark.parametrize(
    "value",
    [
        "text", b"12", 5, None, {1: 2}, {1, 2}, object(), [1, "2"], [1, True], [1, 2.0], [[1]], [None], [2**70],
        np.array([1.0]), np.array([[1]]), np.array(1), np.array(["1"]), np.array([None]), range(10**12),
        [range(10**12)],
    ],
)  # fmt: skip
def test_what_are_no_ids(value):
    with pytest.raises(UsageError, match=r"^ids(\[\d\])? is .*; it must be "):
        checks.ids("ids", value)


def test_rows():
    expected = [[1, 2], [3, 4]]
    for value in (expected, np.array(expected), jnp.array(expected), iter(expected), [np.array([1, 2]), (3, 4)]):
        assert [row.tolist() for row in checks.rows("prompts", value)] == expected


@pytest.mark.parametrize(
    "value", ["text", 5, None, [1, 2], ["text"], np.array([1, 2]), np.array(1), {"a": [1]}], ids=repr
)
def test_what_are_no_rows(value):
    with pytest.raises(UsageError, match="^prompts is .*; it must be a list of lists of ids"):
        checks.rows("prompts", value)


def test_texts():
    assert checks.texts("stop", ["a", "b"]) == ("a", "b") and checks.texts("stop", ()) == ()


@pytest.mark.parametrize("value", ["END", [""], ["a", 1], None, range(10**12)], ids=repr)
def test_what_are_no_texts(value):
    with pytest.raises(UsageError, match="^stop is .*; it must be a list of texts, none of them empty$"):
        checks.texts("stop", value)


@pytest.mark.parametrize(("check", "one"), [(checks.ids, 1), (checks.rows, [1])])
def test_an_iterator_without_an_end_is_refused(check, one, monkeypatch):
    monkeypatch.setattr(checks, "MOST_READ", 5)
    assert len(check("ids", itertools.repeat(one, 5))) == 5
    with pytest.raises(UsageError, match="^ids is an iterator of more than 5 items; it must be a list"):
        check("ids", itertools.repeat(one))


def test_records():
    for value in ([1, 2], (1, 2), iter([1, 2]), {1: "a", 2: "b"}):
        assert checks.records("numbers", value, int, least=2) == [1, 2]
    assert checks.records("numbers", [], int) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (5, "^numbers is 5; it must be a list of int, 1 or more$"),
        ("12", "^numbers is '12'; it must be a list of int"),
        ((), r"^numbers is \(\); it must be a list of int, 1 or more$"),
        ([1, "2"], r"^numbers\[1\] is '2'; it must be of type int$"),
        (itertools.repeat(1), "^numbers is an iterator of more than 5 items"),
    ],
    ids=repr,
)
def test_what_are_no_records(value, says, monkeypatch):
    monkeypatch.setattr(checks, "MOST_READ", 5)
    with pytest.raises(UsageError, match=says):
        checks.records("numbers", value, int, least=1)


@pytest.mark.parametrize("value", ["", "a\0b", b"folder", 5, None, "\ud800"], ids=repr)
def test_what_is_no_path(value):
    with pytest.raises(UsageError, match="^x is .*; it must be a path$"):
        checks.path("x", value)


def test_a_message_shows_any_value_in_a_short_line():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in (Rude(), 10**5000, "x\n" * 999, np.zeros((99, 99)), list(itertools.repeat(1, 999))):
        shown = checks.shown(value)
        assert len(shown) <= 80 and "\n" not in shown


def test_a_path_that_no_file_system_has_is_refused_with_its_reason():
    with pytest.raises(UsageError, match="^x 'aaa.*: File name too long$"):
        checks.path("x", "a" * 5000)
    assert str(checks.path("x", "not/there")) == "not/there"
