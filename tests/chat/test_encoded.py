"""Data sets become ids: cut only between turns, counted; what doesn't fit is named by file and line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.chat.encoded import (
    LabelledIds,
    encode_conversations,
    encode_labelled,
    encode_pairs,
    encode_prompts,
    fit,
    label_names,
)
from jaxgpt.chat.records import Conversation, Message, Preference, Prompt, Text
from jaxgpt.chat.template import DEFAULT_TEMPLATE, ChatTemplate, Encoded, add_template
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import BPETokenizer, CharTokenizer

HAMLET = (Path(__file__).parents[2] / "jaxgpt/data/plays/hamlet.txt").read_text()[:20_000]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return add_template(BPETokenizer.train([HAMLET], 300), DEFAULT_TEMPLATE)


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str) -> Message:
    return Message("assistant", text)


def test_labels_are_numbered_by_name():
    texts = [Text("ab", "spam", "f:1"), Text("b", "ham", "f:2"), Text("a", "spam", "f:3")]
    labels, tokenizer = label_names(texts), CharTokenizer("ab")
    assert labels == ("ham", "spam")
    assert encode_labelled(texts, tokenizer, labels=labels, length=2) == [
        LabelledIds((0, 1), 1),
        LabelledIds((1,), 0),
        LabelledIds((0,), 1),
    ]
    for text, message in [
        (Text("a", "spa", "f:9"), "f:9: label 'spa' is none of 'ham', 'spam'; did you mean 'spam'?"),
        (Text("aba", "ham", "f:9"), "f:9: 3 tokens, but there is room for 2"),
        (Text("x", "ham", "f:9"), "f:9: character 'x'"),
    ]:
        with pytest.raises(UsageError) as caught:
            encode_labelled([text], tokenizer, labels=labels, length=2)
        assert message in str(caught.value)


# Ids are places; 1 in the weights is what the assistant says.
TURNS = Encoded(tuple(range(10)), tuple(map(float, (0, 0, 1, 1, 0, 0, 0, 1, 1, 0))))


@pytest.mark.parametrize(("length", "kept"), [(9, 10), (20, 10), (8, 9), (7, 4), (4, 4), (3, 4), (2, None), (1, None)])
def test_long_conversations_are_cut_at_the_end_of_a_turn(length: int, kept: int | None):
    expected = None if kept is None else Encoded(TURNS.ids[:kept], TURNS.weights[:kept])
    assert fit(TURNS, length) == expected


@given(weights=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30), length=st.integers(1, 30))
def test_what_is_kept_fits_and_is_the_most_there_is(weights: list[float], length: int):
    whole = Encoded(tuple(range(len(weights))), tuple(weights))
    part = fit(whole, length)
    ends = [end for _, end in whole.turns() if end <= length + 1]
    if len(weights) <= length + 1:
        assert part is whole
    elif part is None:
        assert not ends
    else:
        assert len(part.ids) == max(ends) and part.weights[-1] == 1


def test_cut_and_dropped_conversations_are_counted(bpe: BPETokenizer):
    talk = [Conversation((user("a"), says("b")) * turns, f"f:{turns}") for turns in (1, 2, 3)]
    long = Conversation((user("a" * 50), says("b")), "f:4")
    fitted = encode_conversations([*talk, long], bpe, DEFAULT_TEMPLATE, length=11)  # a turn and its answer are 6 tokens
    assert [len(conversation.ids) for conversation in fitted.conversations] == [6, 12, 12]
    assert (fitted.cut, fitted.dropped) == (1, 1)
    assert fitted.conversations[0] == DEFAULT_TEMPLATE.encode(bpe, talk[0].messages)
    with pytest.raises(UsageError, match="none of the 1 conversations has a turn of the assistant's within 11 tokens"):
        encode_conversations([long], bpe, DEFAULT_TEMPLATE, length=11)


def test_what_a_template_refuses_is_named_by_file_and_line(bpe: BPETokenizer):
    template = ChatTemplate(
        DEFAULT_TEMPLATE.source + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "t.jinja",
    )
    records = [Conversation((user("a"), says("b")), "f:1"), Conversation((Message("system", "a"), says("b")), "f:2")]
    with pytest.raises(UsageError, match="^f:2: t.jinja: the chat template fails: no system$"):
        encode_conversations(records, bpe, template, length=20)
    unmarked = ChatTemplate(re.sub("{% (end)?generation %}", "", DEFAULT_TEMPLATE.source))
    with pytest.raises(UsageError, match="nothing to learn"):
        encode_conversations(records[:1], bpe, unmarked, length=20)


def test_texts_are_answered_without_a_template(bpe: BPETokenizer):
    pairs = [Preference("To be", " or not", "?", 0.0, "f:1"), Preference("ab", "a", "b", 0.0, "f:2")]
    encoded = encode_pairs(pairs[:1], bpe, None, length=20)[0].chosen
    begin, end = bpe.encode("To be"), bpe.encode(" or not")
    assert list(encoded.ids) == [*begin, *end, bpe.eos_token_id]
    assert encoded.turns() == [(len(begin), len(encoded.ids))]
    (pair,) = encode_pairs(pairs[1:], CharTokenizer("ab"), None, length=20)
    assert pair.chosen == Encoded((0, 1, 0), (0.0, 0.0, 1.0)) and pair.rejected.ids == (0, 1, 1)


def test_only_the_answer_of_a_pair_is_learnt(bpe: BPETokenizer):
    history = (Message("system", "s"), user("a"), says("b"), user("c"))
    pair = Preference(history, (says("de"), user("f"), says("g")), (says("x"),), 0.0, "f:1")
    encoded = encode_pairs([pair], bpe, DEFAULT_TEMPLATE, length=99)[0].chosen
    whole = DEFAULT_TEMPLATE.encode(bpe, (*history, says("de"), user("f"), says("g")))
    begin = len(DEFAULT_TEMPLATE.encode(bpe, history, add_generation_prompt=True).ids)
    assert encoded.ids == whole.ids and whole.turns()[0][0] < begin
    assert encoded.turns() == whole.turns()[1:] and encoded.turns()[0][0] == begin


def test_a_pair_ends_with_its_answers_last_token(bpe: BPETokenizer):
    lines = ChatTemplate(DEFAULT_TEMPLATE.source.replace("{% endgeneration %}", "{% endgeneration %}{{ '\\n' }}"))
    pair = Preference((user("a"),), (says("b"),), (says("cd"),), 0.5, "f:1")
    (encoded,) = encode_pairs([pair], bpe, lines, length=20)
    assert encoded.margin == 0.5
    for answer in (encoded.chosen, encoded.rejected):
        assert answer.ids[-1] == lines.stop_id(bpe) and answer.weights[-1] == 1


def test_prompts_end_with_what_an_answer_begins_with(bpe: BPETokenizer):
    prompts = [Prompt("To be", "f:1"), Prompt((user("a"),), "f:2")]
    asked = DEFAULT_TEMPLATE.encode(bpe, (user("a"),), add_generation_prompt=True).ids
    assert encode_prompts(prompts, bpe, DEFAULT_TEMPLATE, length=20) == [tuple(bpe.encode("To be")), asked]
    assert asked[-1] == bpe.special_tokens["<|assistant|>"]


def test_what_is_too_long_or_lacks_a_template_is_named(bpe: BPETokenizer):
    short, long = Preference("a", "b", "c", 0.0, "f:1"), Preference("a", "b", "cdefg", 0.0, "f:2")
    messages = Preference((user("a"),), (says("b"),), (says("c"),), 0.0, "f:3")
    assert len(encode_pairs([short], bpe, None, length=3)) == 1
    too_long = f"^f:2: {2 + len(bpe.encode('cdefg'))} tokens, but there is room for 3$"
    for use, message in [
        (lambda: encode_pairs([short, long], bpe, None, length=3), too_long),
        (lambda: encode_pairs([messages], bpe, None, length=3), "^f:3: messages need a chat template"),
        (lambda: encode_prompts([Prompt("a b c", "f:4")], bpe, None, length=2), "^f:4: . tokens, but there is room"),
        (
            lambda: encode_prompts([Prompt((user("a"),), "f:5")], bpe, None, length=9),
            "^f:5: messages need a chat templ",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            use()
    silent = ChatTemplate("{% if messages | length < 3 %}" + DEFAULT_TEMPLATE.source + "{% endif %}", "t.jinja")
    pair = Preference((user("a"), says("b"), user("c")), (says("b"),), (says("c"),), 0.0, "f:6")
    with pytest.raises(UsageError, match="f:6: t.jinja: leaves the answer out"):
        encode_pairs([pair], bpe, silent, length=20)
