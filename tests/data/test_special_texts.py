"""Special tokens are counted wherever pieces of a text end."""

import pytest

from jaxgpt.data.special_texts import SpecialTexts


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_each_is_counted_once(size: int):
    text, seen = "<|a|>x<|a|><|endoftext|><|endoftext|", SpecialTexts(["<|a|>", "<|endoftext|>", "<|none|>"])
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(seen.watch(pieces)) == pieces
    notes = seen.notes("data")
    assert len(notes) == 2 and "<|a|>' stands in it 2 times" in notes[0] and "--allow_special" in notes[0]
    assert "<|endoftext|>' stands in it 1 times" in notes[1] and "--document_separator" in notes[1]
