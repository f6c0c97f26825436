"""A conversation keeps what was said, forgets the oldest turns when the context is full, and compiles few programs."""

from dataclasses import replace

import pytest

from jaxgpt.chat.records import Message
from jaxgpt.chat.template import DEFAULT_TEMPLATE, add_template
from jaxgpt.decode.dialogue import Chat
from jaxgpt.decode.engine import generate
from jaxgpt.decode.rows import coarse_bucket
from jaxgpt.decode.step import prefill
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.notes import note
from jaxgpt.tokenizers import BPETokenizer, CharTokenizer

TOKENIZER = add_template(BPETokenizer.train([], 257), DEFAULT_TEMPLATE)
CONFIG = GPTConfig(TOKENIZER.vocab_size, 64, 8, 1, 2, bos_token_id=None, eos_token_id=None)


@pytest.fixture(scope="module")
def params(draw):
    return draw(CONFIG)


def prompt(*said: tuple[str, str]) -> list[int]:
    messages = [Message(role, content) for role, content in said]
    return list(DEFAULT_TEMPLATE.encode(TOKENIZER, messages, add_generation_prompt=True).ids)


def test_an_answer_is_what_generate_makes_of_all_that_was_said(params):
    chat, said = Chat(CONFIG, params, TOKENIZER, system="s", max_new_tokens=8, temperature=1.0), [("system", "s")]
    programs = prefill._cache_size()
    for seed, question in enumerate(["hi", "a longer one"]):
        said.append(("user", question))
        [ids] = generate(CONFIG, params, [prompt(*said)], max_new_tokens=8, temperature=1.0, seed=seed)
        mine = "".join(chat.ask(question))
        assert mine == TOKENIZER.decode(ids)
        said.append(("assistant", mine))
        assert [(m.role, m.content) for m in chat.messages] == said
    assert prefill._cache_size() - programs <= 3, "two of generate's, and one for all turns"
    chat.reset()
    assert chat.messages == (Message("system", "s"),)


def test_what_was_read_of_a_stopped_answer_is_kept(params):
    chat = Chat(CONFIG, params, TOKENIZER, max_new_tokens=8)
    answer = chat.ask("hi")
    assert chat.messages == ()
    read = next(answer) + next(answer)
    answer.close()
    assert chat.messages == (Message("user", "hi"), Message("assistant", read))


def test_the_oldest_turns_are_forgotten_with_a_note_or_the_context_slides(params, capsys):
    note.cache_clear()
    chat = Chat(CONFIG, params, TOKENIZER, system="s", max_new_tokens=16)
    turns = (Message("user", "a" * 14), Message("assistant", "b" * 14))
    chat.messages = (*chat.messages, *turns)
    slid = Chat(CONFIG, params, TOKENIZER, max_new_tokens=4, overflow="slide")
    slid.messages = turns * 4
    assert "".join(slid.ask("c")) and slid.messages[:8] == turns * 4
    capsys.readouterr()
    "".join(chat.ask("c" * 14))
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert "the context of 64 is full; the 2 oldest messages are forgotten" in capsys.readouterr().err


def test_a_question_that_alone_is_too_long_is_refused_or_cut_and_changes_nothing(params):
    chat = Chat(CONFIG, params, TOKENIZER, max_new_tokens=16)
    chat.messages = before = (Message("user", "a"), Message("assistant", "b"))
    with pytest.raises(UsageError, match="too many .* room for 48, and 16 of an answer"):
        chat.ask("c" * 60)
    assert chat.messages == before
    cut = Chat(CONFIG, params, TOKENIZER, max_new_tokens=16, truncate="left")
    next(cut.ask("c" * 60 + "d"))
    assert cut.messages[0].content == "c" * 44 + "d"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 64}, "max_new_tokens is 64; it must be below the model's context, 64"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"stop": "END"}, "stop is 'END'; it must be a list of texts"),
        ({"overflow": "slid"}, "overflow is 'slid'; it must be one of error, slide; did you mean 'slide'"),
        ({"system": 5}, "system is 5; it must be a text"),
        ({"template": replace(DEFAULT_TEMPLATE, source="{{ raise_exception('no system') }}"), "system": "s"}, "no sys"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_arguments_are_refused_at_once(params, arguments, message):
    with pytest.raises(UsageError, match=message):
        Chat(CONFIG, params, TOKENIZER, **arguments)
    with pytest.raises(UsageError, match="no chat template"):
        Chat(CONFIG, params, CharTokenizer("ab"))


def test_lengths_of_a_growing_conversation_are_few():
    assert {coarse_bucket(n) for n in range(1, 1025)} == {64, 128, 256, 512, 1024}
    assert all(coarse_bucket(n) >= n for n in range(1, 2000))
