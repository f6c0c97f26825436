from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.decode.text import TextStream
from jaxgpt.tokenizers import CharTokenizer, Tokenizer, load_tokenizer

LETTERS = CharTokenizer("abc")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


def pieces(tokenizer: Tokenizer, ids: list[int], stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    return [*(stream.push(i) for i in ids), stream.flush()]


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text, stop):
    first = min((text.find(s) for s in stop if s in text), default=len(text))
    # Of two stop strings, one that is complete earlier ends the text even if the other began before it.
    complete = min((text.find(s) + len(s) for s in stop if s in text), default=len(text))
    shown = "".join(pieces(LETTERS, LETTERS.encode(text), stop))
    assert text.startswith(shown) and first <= len(shown) <= complete
    assert not any(s in shown for s in stop)
    if len(stop) < 2:
        assert shown == text[:first]


def test_only_what_may_begin_a_stop_string_is_held_back():
    assert pieces(LETTERS, LETTERS.encode("cabacabb"), ["abb"]) == ["c", "", "", "ab", "ac", "", "", "", ""]


def test_an_end_id_ends_the_text_with_what_was_held_back():
    stream = TextStream(LETTERS, ["abb"], end_ids=[2])
    assert [stream.push(i) for i in LETTERS.encode("babca")] == ["b", "", "", "ab", ""]
    assert stream.ended and stream.flush() == ""


def test_an_ended_text_says_so_and_stays_ended():
    stream = TextStream(LETTERS, ["b"])
    assert [stream.push(i) for i in LETTERS.encode("abac")] == ["a", "", "", ""]
    assert stream.ended and stream.flush() == ""


@given(text=st.text(max_size=20))
def test_no_piece_holds_half_a_character(gpt2, text):
    ids = gpt2.encode(text)
    assert "".join(pieces(gpt2, ids)) == gpt2.decode(ids)


def test_half_a_character_at_the_end_is_shown_as_such(gpt2):
    half = gpt2.encode("\N{SNOWMAN}")[:1]
    assert pieces(gpt2, half) == ["", "\N{REPLACEMENT CHARACTER}"]
