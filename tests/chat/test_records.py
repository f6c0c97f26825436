"""Records are split into some to train on and some to validate on, by a seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.chat.records import split
from jaxgpt.errors import UsageError


@given(count=st.integers(2, 60), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 2**32 - 1))
def test_a_split_leaves_nothing_out_and_is_the_same_again(count: int, fraction: float, seed: int):
    train, val = split(range(count), fraction, seed=seed)
    assert sorted(train + val) == list(range(count)) and train == sorted(train) and val == sorted(val)
    assert (
        train
        and abs(len(val) - max(1, fraction * count)) <= 1
        and (train, val) == split(range(count), fraction, seed=seed)
    )


def test_a_split_is_drawn_by_its_seed():
    assert split(range(100), 0.1, seed=1) != split(range(100), 0.1, seed=2)
    with pytest.raises(UsageError, match="1 records can't be split"):
        split([1], 0.1, seed=1)
    with pytest.raises(UsageError, match="val_fraction 1.0"):
        split([1, 2], 1.0, seed=1)
