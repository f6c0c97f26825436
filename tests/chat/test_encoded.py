"""Data sets become ids: cut only between turns, counted; what doesn't fit is named by file and line."""

import itertools
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt import checks
from jaxgpt.chat.encoded import (
    LabelledIds,
    encode_conversations,
    encode_labelled,
    encode_pairs,
    encode_prompts,
)
from jaxgpt.chat.labels import label_names
from jaxgpt.chat.records import Conversation, Message, Preference, Prompt, Text
from jaxgpt.chat.template import DEFAULT_TEMPLATE, ChatTemplate, Encoded, add_template
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.ends import Ends
from jaxgpt.tokenizers.tokenizer import BPETokenizer

HAMLET = (Path(__file__).parents[2] / "jaxgpt/data/plays/hamlet.txt").read_text()[:20_000]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return add_template(BPETokenizer.train([HAMLET], 300), DEFAULT_TEMPLATE)


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str) -> Message:
    return Message("assistant", text)


def test_records_without_an_end_are_refused(bpe, monkeypatch):
    monkeypatch.setattr(checks, "MOST_READ", 5)
    for encode, one in (
        (partial(encode_labelled, labels=("ham",)), Text("ab", "ham", "")),
        (partial(encode_conversations, template=DEFAULT_TEMPLATE), Conversation((user("a"), says("b")), "")),
        (partial(encode_pairs, template=None), Preference("a", "b", "c", 0.0, "")),
        (partial(encode_prompts, template=None), Prompt("a", "")),
    ):
        with pytest.raises(UsageError, match="an iterator of more than 5 items"):
            encode(itertools.repeat(one), tokenizer=bpe, length=9)


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


def test_cut_and_dropped_conversations_are_counted(bpe: BPETokenizer, capsys):
    talk = [Conversation((user("a"), says("b")) * turns, f"f:{turns}") for turns in (1, 2, 3)]
    long = Conversation((user("a" * 50), says("b")), "f:4")
    answer = Conversation((user("a"), says("b" * 50)), "f:5")  # the first answer alone is longer than the room
    whole = {"tokenizer": bpe, "template": DEFAULT_TEMPLATE, "length": 11}  # a turn and its answer are 6 tokens
    found = encode_conversations([*talk, long], **whole, too_long="cut")
    assert [len(conversation.ids) for conversation in found] == [6, 12, 12]
    assert found[0] == DEFAULT_TEMPLATE.encode(bpe, talk[0].messages)
    more = "have more than 12 tokens and are"
    assert capsys.readouterr().err.splitlines() == [
        f"note: 1 of 4 conversations {more} cut: f:3 (--too_long)",
        f"note: 1 of 4 conversations {more} left out: f:4 (--too_long)",
    ]
    [first] = encode_conversations([answer], **whole, too_long="cut")
    told = DEFAULT_TEMPLATE.encode(bpe, answer.messages)
    assert first == Encoded(told.ids[:12], told.weights[:12])
    assert capsys.readouterr().err == f"note: 1 of 1 conversations {more} cut: f:5 (--too_long)\n"
    assert encode_conversations([*talk, long], **whole, too_long="drop") == found[:2]
    assert capsys.readouterr().err == f"note: 2 of 4 conversations {more} left out: f:3, f:4 (--too_long)\n"
    with pytest.raises(UsageError, match="none of the 1 conversations fits into 12 tokens; the first is f:4"):
        encode_conversations([long], **whole, too_long="cut")
    with pytest.raises(UsageError, match="^f:3: 18 tokens, but there is room for 12$"):
        encode_conversations(talk, **whole)


def test_what_a_template_refuses_is_named_by_file_and_line(bpe: BPETokenizer):
    template = ChatTemplate(
        DEFAULT_TEMPLATE.source + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "t.jinja",
    )
    records = [Conversation((user("a"), says("b")), "f:1"), Conversation((Message("system", "a"), says("b")), "f:2")]
    with pytest.raises(UsageError, match="^f:2: t.jinja: the chat template fails: no system$"):
        encode_conversations(records, bpe, template, length=20)
    unmarked = ChatTemplate("{% generation %}{% endgeneration %}{{ messages[0].content }}<|end|>")
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
    both = [tuple(bpe.encode("To be")), asked]
    assert encode_prompts(prompts, bpe, DEFAULT_TEMPLATE, length=20) == list(zip(both, prompts, strict=True))
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


def test_a_text_beyond_the_room_loses_its_end_but_not_what_ends_every_text(capsys):
    tokenizer = CharTokenizer("ab")
    texts = [Text("ab", "x", "g:1"), Text("abba", "y", "g:2")]
    cut = encode_labelled(texts, tokenizer, labels=("x", "y"), length=3, too_long="cut")
    assert cut == [LabelledIds((0, 1), 0), LabelledIds((0, 1, 1), 1)]
    assert encode_labelled(texts, tokenizer, labels=("x", "y"), length=3, too_long="drop") == cut[:1]
    said = "1 of 2 texts have more than 3 tokens and are"
    assert capsys.readouterr().err == f"note: {said} cut: g:2 (--too_long)\nnote: {said} left out: g:2 (--too_long)\n"
    with pytest.raises(UsageError, match="none of the 1 texts fits into 3 tokens; the first is g:2"):
        encode_labelled(texts[1:], tokenizer, labels=("x", "y"), length=3, too_long="drop")
    ends = BPETokenizer.train([HAMLET], 300)
    ends.ends = Ends((7,), (8, 9))
    [one] = encode_labelled([Text("abcabc", "x", "g:3")], ends, labels=("x",), length=5, too_long="cut")
    assert one.ids == tuple(ends.encode("abcabc")[:3]) + (8, 9)


def test_a_pair_loses_the_prompts_beginning_and_then_the_answers_ends():
    tokenizer = CharTokenizer("abcdefgh")
    cut = partial(encode_pairs, tokenizer=tokenizer, template=None, length=6, too_long="cut")
    [pair] = cut([Preference("abcdefgh", "ab", "c", 0.0, "h:1")])
    assert (pair.chosen.ids, pair.rejected.ids) == ((4, 5, 6, 7, 0, 1), (4, 5, 6, 7, 2))
    assert pair.chosen.weights == (0, 0, 0, 0, 1, 1)
    [pair] = cut([Preference("abcdefgh", "abcdabcd", "c", 0.0, "h:2")])
    assert (pair.chosen.ids, pair.rejected.ids) == ((5, 6, 7, 0, 1, 2), (5, 6, 7, 2))
    [pair] = cut([Preference("a", "abcdabcd", "c", 0.0, "h:3")])
    assert (pair.chosen.ids, pair.rejected.ids) == ((0, 0, 1, 2, 3, 0), (0, 2))
    same = Preference("abcdefgh", "aaaab", "aaaac", 0.0, "h:4")
    with pytest.raises(UsageError, match="none of the 1 pairs fits into 6 tokens; the first is h:4"):
        cut([same])
    assert len(cut([same, Preference("a", "b", "c", 0.0, "h:5")])) == 1


def test_a_pair_of_messages_is_cut_between_messages_and_inside_of_the_last_one(bpe: BPETokenizer):
    history = (Message("system", "s"), user("abc" * 9), says("b"), user("c"))
    pair = Preference(history, (says("de"),), (says("x"),), 0.0, "i:1")
    fewer = encode_pairs([replace(pair, prompt=(history[0], history[3]))], bpe, DEFAULT_TEMPLATE, length=99)
    assert encode_pairs([pair], bpe, DEFAULT_TEMPLATE, length=20, too_long="cut") == fewer
    alone = replace(pair, prompt=(user("abc" * 9),))
    [cut] = encode_pairs([alone], bpe, DEFAULT_TEMPLATE, length=12, too_long="cut")
    assert len(cut.chosen.ids) == 12 and cut.rejected.ids[-1] == DEFAULT_TEMPLATE.stop_id(bpe)
    assert re.fullmatch(r"<\|user\|>[abc]+abc<\|end\|><\|assistant\|>de<\|end\|>", bpe.decode(cut.chosen.ids))
    [short] = encode_pairs(
        [replace(alone, chosen=(says("de" * 30),))], bpe, DEFAULT_TEMPLATE, length=12, too_long="cut"
    )
    assert len(short.chosen.ids) == 12 and short.chosen.ids[-1] != DEFAULT_TEMPLATE.stop_id(bpe)
    assert short.chosen.turns() == [(short.rejected.turns()[0][0], 12)]
    assert short.rejected.ids[-1] == DEFAULT_TEMPLATE.stop_id(bpe), "an answer that fits keeps its end"


@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30), length=st.integers(1, 20))
def test_a_prompt_that_is_cut_keeps_its_end_and_its_role_tokens(bpe: BPETokenizer, text: str, length: int):
    prompts = [Prompt("x", "j:1"), Prompt(text, "j:2")]
    *_, (ids, of) = encode_prompts(prompts, bpe, DEFAULT_TEMPLATE, length=length, too_long="cut")
    assert of == prompts[1] and ids == tuple(bpe.encode(text)[-length:])
    asked = [Prompt((user("x"),), "j:1"), Prompt((user("y"), says("z"), user(text)), "j:2")]
    found = encode_prompts(asked, bpe, DEFAULT_TEMPLATE, length=length + 5, too_long="cut")
    for ids, _ in found:
        assert len(ids) <= length + 5 and bpe.decode(ids[:1]) == "<|user|>"
        assert bpe.decode(ids[-2:]) == "<|end|><|assistant|>"
        assert (text or "").endswith(bpe.decode(ids[1:-2]).rpartition("<|user|>")[2]) or ids == found[0][0]
