"""Characters go round, and what is none of them is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.char import CharTokenizer


@given(text=st.text())
def test_characters_go_round(text: str):
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and sorted(set(ids)) == list(range(tokenizer.vocab_size))


def test_unknown_characters_and_ids_are_named():
    tokenizer = CharTokenizer("abc")
    with pytest.raises(UsageError, match=r"'é' \(U\+00E9\).*the 3"):
        tokenizer.encode("abé")
    for i in (3, -1):
        with pytest.raises(UsageError, match=f"token id {i}"):
            tokenizer.decode([i])
