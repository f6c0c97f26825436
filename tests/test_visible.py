import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.visible import visible


class Stream:
    def __init__(self, terminal: bool) -> None:
        self.isatty = lambda: terminal


def test_on_a_terminal_control_characters_are_spelled_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Stream(True))
    assert visible("\x1b[2J\a\0é 漢\t\n\r\n\rx\x7f\x9b") == "\\x1b[2J\\x07\\x00é 漢\t\n\r\n\\x0dx\\x7f\\x9b"


@given(text=st.text())
def test_a_file_gets_the_text_as_it_is_and_a_terminal_what_commands_nothing(text: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Stream(False))
        assert visible(text) == text
        patch.setattr(sys, "stdout", Stream(True))
        shown = visible(text)
    kept = {character for character in shown if character.isprintable() is False and ord(character) < 0xA0}
    assert kept <= {"\t", "\n", "\r"}
    assert "\r" not in shown.replace("\r\n", "")
    assert len(visible("".join(filter(str.isprintable, text)))) == len("".join(filter(str.isprintable, text)))
