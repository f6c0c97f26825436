"""What is streamed adds up to what is decoded, and no part has half a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.stream import StreamDecoder
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

GPT2 = load_tokenizer("gpt2")
MIXED = "To be, or not  \n\n é漢字🙂 it's <|endoftext|> 1234 "


@pytest.mark.parametrize(
    "tokenizer", [GPT2, BPETokenizer.train([MIXED], 280), CharTokenizer(MIXED)], ids=["gpt2", "bpe", "char"]
)
def test_streaming_adds_up_to_decoding(tokenizer: Tokenizer):
    ids = tokenizer.encode(MIXED)
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids) == MIXED
    assert all("\ufffd" not in part for part in parts)


@given(ids=st.lists(st.integers(0, 50256)))
def test_streaming_any_ids_adds_up_to_decoding(ids: list[int]):
    stream = StreamDecoder(GPT2)
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == GPT2.decode(ids)
