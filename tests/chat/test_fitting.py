"""What is too long is cut where a reader would cut it, and as little as can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.chat.fitting import cut_conversation, prompt_room
from jaxgpt.chat.template import Encoded

# Ids are places; 1 in the weights is what the assistant says.
TURNS = Encoded(tuple(range(10)), tuple(map(float, (0, 0, 1, 1, 0, 0, 0, 1, 1, 0))))


@pytest.mark.parametrize(("room", "kept"), [(9, 9), (8, 4), (5, 4), (4, 4), (3, None), (1, None)])
def test_long_conversations_are_cut_at_the_end_of_a_turn(room: int, kept: int | None):
    expected = None if kept is None else Encoded(TURNS.ids[:kept], TURNS.weights[:kept])
    assert cut_conversation(TURNS, room) == expected


@given(weights=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30), room=st.integers(1, 30))
def test_what_is_kept_fits_and_is_the_most_there_is(weights: list[float], room: int):
    whole = Encoded(tuple(range(len(weights))), tuple(weights))
    part = cut_conversation(whole, room)
    ends = [end for _, end in whole.turns() if end <= room]
    if part is None:
        assert not ends
    else:
        assert len(part.ids) == max(ends) and part.weights[-1] == 1


def test_a_prompt_keeps_what_the_longer_answer_leaves_or_half_of_the_room():
    assert prompt_room([5, 5], [7, 9], 10) == 6
    assert prompt_room([5, 5], [7, 13], 10) == prompt_room([5, 5], [7, 99], 11) == 5
