"""A text is cut where its ids are those of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.encoding import cutting
from jaxgpt.data.encoding.cutting import cut_between_words
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.bpe import BPE


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.train([(PLAYS_FOLDER / "tempest.txt").read_text()], 600)


@given(text=st.text("ab1'st \n\t\u00a0\x1c\u3000é.!", max_size=80), size=st.integers(1, 9), piece=st.integers(1, 9))
def test_cutting_never_changes_the_ids(bpe: BPE, text: str, size: int, piece: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_CHUNK", size)
        parts = list(cut_between_words(text[i : i + piece] for i in range(0, len(text), piece)))
    assert "".join(parts) == text
    assert [i for part in parts for i in bpe.encode(part)] == bpe.encode(text)


def test_a_text_that_cannot_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutting, "_CHUNK", 100)
    monkeypatch.setattr(cutting, "_LONGEST_WORD", 1000)
    with pytest.raises(UsageError, match="1001 characters from 'aaa.* no space"):
        list(cut_between_words("a" for _ in range(5000)))
