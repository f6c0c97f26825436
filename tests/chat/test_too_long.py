"""What is too long is cut where a reader would cut it, and as little as can be."""

import pytest

from jaxgpt.chat.template import Encoded
from jaxgpt.chat.too_long import cut_conversation, prompt_room

# Ids are places; 1 in the weights is what the assistant says.
TURNS = Encoded(tuple(range(10)), tuple(map(float, (0, 0, 1, 1, 0, 0, 0, 1, 1, 0))))


@pytest.mark.parametrize(("room", "kept"), [(9, True), (5, True), (3, True), (2, False), (1, False)])
def test_long_conversations_lose_their_ends_as_by_trl(room: int, kept: bool):
    """TRL's `keep_start`, with what then has nothing to learn left out."""
    expected = Encoded(TURNS.ids[:room], TURNS.weights[:room]) if kept else None
    assert cut_conversation(TURNS, room) == expected


def test_a_prompt_keeps_what_the_longer_answer_leaves_or_half_of_the_room():
    assert prompt_room([5, 5], [7, 9], 10) == 6
    assert prompt_room([5, 5], [7, 13], 10) == prompt_room([5, 5], [7, 99], 11) == 5
