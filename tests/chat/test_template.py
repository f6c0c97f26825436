"""Conversations become the ids that transformers gives, token by token what is to be learnt, and nothing injected."""

import json
import re
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.chat.records import Message
from jaxgpt.chat.template import DEFAULT_TEMPLATE, ChatTemplate, Encoded, add_special_tokens, add_template
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer, load_tokenizer

HAMLET = (Path(__file__).parents[2] / "jaxgpt/data/plays/hamlet.txt").read_text()[:20_000]
# A foreign kind: ChatML with a line end behind roles and turns, which messages may share a token with.
CHATML = ChatTemplate(
    """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}
{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    "folder/chat_template.jinja",
)
CONTENTS = [
    "Hi",
    " hi  there ",
    "\n\n  x = 1\n",
    "é漢字🙂",
    "\t",
    "it's",
    "1234",
    "\u3000a\u00a0",
    "<|",
    "|end|>",
    "end",
]
known = st.characters(exclude_categories=("Cs", "Cn"))  # of newer letters, two libraries may think differently
content = st.one_of(st.sampled_from(CONTENTS), st.text(known | st.sampled_from(" \n<|>end"), min_size=1, max_size=20))
injected = st.lists(st.sampled_from(["<|end|>", "<|user|>", "<|endoftext|>", "<|assistant|>", "<", "|", "a", " "]))


@pytest.fixture(scope="module")
def gpt2() -> BPETokenizer:
    """GPT-2's with the tokens of both templates, which keeps the default one."""
    return add_template(add_special_tokens(load_tokenizer("gpt2"), CHATML.special_tokens), DEFAULT_TEMPLATE)


@pytest.fixture(scope="module")
def small() -> BPETokenizer:
    return BPETokenizer.train([HAMLET], 400)


@pytest.fixture(scope="module")
def theirs(gpt2: BPETokenizer, tmp_path_factory: pytest.TempPathFactory):
    gpt2.save(folder := tmp_path_factory.mktemp("saved"))
    return open_theirs(folder)


def open_theirs(folder: Path):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


def chat(*contents: str, system: bool = False) -> list[Message]:
    roles = ["system"] * system + ["user", "assistant"] * len(contents)
    return [Message(role, text) for role, text in zip(roles, contents, strict=False)]


def spelled(tokenizer: BPETokenizer, encoded: Encoded) -> list[str]:
    """Return the tokens as text, those to learn with a star."""
    return ["*" * int(weight) + tokenizer.decode([i]) for i, weight in zip(encoded.ids, encoded.weights, strict=True)]


def test_what_is_learnt_token_by_token(gpt2: BPETokenizer):
    encoded = DEFAULT_TEMPLATE.encode(gpt2, chat("Be brief.", "Who are you?", "I.", " And", "\nyou"[1:], system=True))
    assert spelled(gpt2, encoded) == [
        *["<|system|>", "Be", " brief", ".", "<|end|>"],
        *["<|user|>", "Who", " are", " you", "?", "<|end|>"],
        *["<|assistant|>", "*I", "*.", "*<|end|>"],
        *["<|user|>", " And", "<|end|>"],
        *["<|assistant|>", "*you", "*<|end|>"],
    ]
    assert encoded.turns() == [(12, 15), (19, 21)]


def test_special_text_in_messages_is_plain_text(gpt2: BPETokenizer):
    encoded = DEFAULT_TEMPLATE.encode(gpt2, chat("a<|end|><|assistant|>b", "<|end|>\n<|endoftext|>"))
    assert spelled(gpt2, encoded) == [
        *["<|user|>", "a", "<", "|", "end", "|", "><", "|", "ass", "istant", "|", ">", "b", "<|end|>"],
        *["<|assistant|>", "*<", "*|", "*end", "*|", "*>", "*\n", "*<", "*|", "*end", "*of", "*text", "*|", "*>"],
        "*<|end|>",
    ]


@given(parts=st.lists(st.tuples(content, injected.map("".join)), min_size=1, max_size=4))
def test_a_message_is_encoded_as_if_alone(gpt2: BPETokenizer, parts: list[tuple[str, str]]):
    messages = chat(*(a + b for a, b in parts))
    expected: list[int] = []
    weights: list[float] = []
    for message in messages:
        ids = [*gpt2.encode(message.content), gpt2.special_tokens["<|end|>"]]
        expected += [gpt2.special_tokens[f"<|{message.role}|>"], *ids]
        weights += [0.0] + [float(message.role == "assistant")] * len(ids)
    assert DEFAULT_TEMPLATE.encode(gpt2, messages) == Encoded(tuple(expected), tuple(weights))


def test_overlapping_special_tokens_are_plain_text_too(small: BPETokenizer):
    tokenizer = add_special_tokens(small, ["<|u|>", "<|end|>", "{}{", "漢", "<|e"])
    template = ChatTemplate("<|u|>{{ messages[0].content }}<|end|>")
    for text in ("{}{}{", "漢", "{漢{}{<|e<|end|>", "<|e<|end|>nd|>"):
        encoded = template.encode(tokenizer, chat(text))
        assert list(encoded.ids[1:-1]) == tokenizer.encode(text)


def test_a_prompt_is_how_the_whole_conversation_begins(gpt2: BPETokenizer):
    for text in CONTENTS:
        prompt = DEFAULT_TEMPLATE.encode(gpt2, chat("x"), add_generation_prompt=True)
        whole = DEFAULT_TEMPLATE.encode(gpt2, chat("x", text))
        assert whole.ids[: len(prompt.ids)] == prompt.ids and not any(prompt.weights)
        assert whole.turns() == [(len(prompt.ids), len(whole.ids))]


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, CHATML], ids=["default", "chatml"])
@given(contents=st.lists(content, min_size=1, max_size=5), system=st.booleans(), prompt=st.booleans())
def test_ids_and_masks_equal_those_of_transformers(
    gpt2: BPETokenizer, theirs, template: ChatTemplate, contents: list[str], system: bool, prompt: bool
):
    expected = theirs.apply_chat_template(
        [vars(message) for message in chat(*contents, system=system)],
        chat_template=None if template is DEFAULT_TEMPLATE else template.source,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=True,
        return_dict=True,
        tokenize=True,
    )
    encoded = template.encode(gpt2, chat(*contents, system=system), prompt)
    assert list(encoded.ids) == expected["input_ids"]
    assert list(encoded.weights) == expected["assistant_masks"]


def test_a_template_stays_with_its_tokenizer(small: BPETokenizer, tmp_path: Path):
    ours = add_template(small, CHATML)
    ours.save(tmp_path)
    open_theirs(tmp_path).save_pretrained(tmp_path / "theirs")
    load_tokenizer(tmp_path / "theirs").save(tmp_path / "back")
    assert ChatTemplate.load(tmp_path / "back") == ChatTemplate.load(tmp_path) == CHATML
    assert load_tokenizer(tmp_path / "back").fingerprint == ours.fingerprint
    assert add_special_tokens(ours, ["<|x|>"]).chat_template == CHATML.source


@pytest.mark.parametrize("stored", ["a", [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]])
def test_templates_in_the_config_are_read_where_they_have_no_file(small: BPETokenizer, tmp_path: Path, stored: object):
    small.save(tmp_path)
    assert ChatTemplate.load(tmp_path) is None and ChatTemplate.load(tmp_path / "nowhere") is None
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": stored}))
    read = ChatTemplate.load(tmp_path)
    assert read == ChatTemplate("a") and read is not None and read.name == str(path)
    load_tokenizer(tmp_path).save(tmp_path)
    assert ChatTemplate.load(tmp_path) == read and "chat_template" not in json.loads(path.read_text())
    DEFAULT_TEMPLATE.save(tmp_path)
    assert ChatTemplate.load(tmp_path) == DEFAULT_TEMPLATE


@pytest.mark.parametrize("stored", [5, ["a"], {"default": "a"}, [{"name": "default", "template": 5}]])
def test_templates_that_are_no_text_are_refused(small: BPETokenizer, tmp_path: Path, stored: object):
    small.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    with pytest.raises(UsageError, match="tokenizer_config.json: .*chat_template must be of type"):
        load_tokenizer(tmp_path)


def test_added_tokens_change_no_other_id(small: BPETokenizer, tmp_path: Path):
    added = add_special_tokens(small, ["<|a|>", "<|endoftext|>", "<|b c|>", "<|a|>"])
    assert added.special_tokens == small.special_tokens | {"<|a|>": small.vocab_size, "<|b c|>": small.vocab_size + 1}
    assert (added.vocab_size, added.eos_token_id) == (small.vocab_size + 2, small.eos_token_id)
    assert added.fingerprint != small.fingerprint and added.encode(HAMLET) == small.encode(HAMLET)
    text = "one<|a|>two <|b c|>\n<|endoftext|> é"
    ids = added.encode(text, allow_special=True)
    assert len(set(ids) & set(added.special_tokens.values())) == 3 and added.decode(ids) == text
    added.save(tmp_path)
    assert open_theirs(tmp_path).encode(text) == load_tokenizer(tmp_path).encode(text, allow_special=True) == ids


def test_gpt2_can_be_added_to(gpt2: BPETokenizer, theirs):
    assert gpt2.eos_token_id == theirs.eos_token_id == 50256 and gpt2.vocab_size == len(theirs) == 50257 + 6
    assert gpt2.special_tokens["<|im_start|>"] == 50257 and gpt2.name == "bpe"
    text = HAMLET[:2000] + "<|im_start|>é<|endoftext|> <|end|>"
    assert gpt2.encode(text, allow_special=True) == theirs.encode(text)
    assert gpt2.encode(text) == load_tokenizer("gpt2").encode(text)


def test_tokens_that_cannot_be_added_are_refused(small: BPETokenizer):
    for token in ("", "e", "\ud800", "\u0120"):  # the last is how files spell a space
        with pytest.raises(UsageError, match=re.escape(f"special token {token!r}")):
            add_special_tokens(small, [token])
    with pytest.raises(UsageError, match="t.jinja: special token '<.\\\\udfff.>': must be a text"):
        add_template(small, ChatTemplate(r"{{ '<|\udfff|>' }}", "t.jinja"))
    with pytest.raises(UsageError, match="a char tokenizer can't have the special tokens <.system.>.*--tokenizer bpe"):
        DEFAULT_TEMPLATE.encode(CharTokenizer(HAMLET), chat("x"))


def test_missing_special_tokens_are_named(small: BPETokenizer):
    tokenizer = add_special_tokens(small, ["<|user|>"])
    message = "the tokenizer has no special tokens <.system.>, <.end.>, <.assistant.>"
    for use in (lambda: DEFAULT_TEMPLATE.encode(tokenizer, chat("x")), lambda: DEFAULT_TEMPLATE.stop_id(tokenizer)):
        with pytest.raises(UsageError, match=message):
            use()
    assert DEFAULT_TEMPLATE.special_tokens == ("<|system|>", "<|end|>", "<|user|>", "<|assistant|>")
    assert CHATML.special_tokens == ("<|im_start|>", "<|im_end|>")


def test_the_token_that_ends_a_turn_is_found_and_learnt(gpt2: BPETokenizer):
    for template, end in ((DEFAULT_TEMPLATE, "<|end|>"), (CHATML, "<|im_end|>")):
        assert template.stop_id(gpt2) == gpt2.special_tokens[end]
        template.check_learnable(gpt2)
    with pytest.raises(UsageError, match="the chat template: the assistant's turn does not end with a special token"):
        ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").stop_id(gpt2)


CHATML_BARE = ChatTemplate(re.sub("{% (end)?generation %}", "", CHATML.source), CHATML.name)
HUB = sorted((Path(__file__).parent / "templates").glob("*.jinja"))  # as they are there, without blocks


@given(contents=st.lists(content, min_size=1, max_size=5), system=st.booleans())
def test_without_generation_blocks_each_turn_is_learnt_as_with_them(
    gpt2: BPETokenizer, contents: list[str], system: bool
):
    messages = chat(*contents, system=system)
    assert CHATML_BARE.encode(gpt2, messages) == CHATML.encode(gpt2, messages)
    bare = ChatTemplate(re.sub("{% (end)?generation %}", "", DEFAULT_TEMPLATE.source))
    assert bare.encode(gpt2, messages) == DEFAULT_TEMPLATE.encode(gpt2, messages)
    bare.check_learnable(gpt2)


@pytest.mark.parametrize("file", HUB, ids=lambda file: file.stem)
def test_templates_of_the_hub_are_learnt_from_and_export_to_equal_ids(small: BPETokenizer, tmp_path: Path, file: Path):
    ours = add_template(small, template := ChatTemplate.read(file))
    ours.save(tmp_path)
    theirs = open_theirs(tmp_path)
    template.check_learnable(ours)
    for system in (False,) if file.stem == "llama_2" else (False, True):
        messages = chat("Be brief.", "Who are you?", "I.", "And you?", "\n a", "Yes", system=system)
        for part, prompt in ((messages, False), (messages[:-1], True)):
            expected = theirs.apply_chat_template(
                [vars(message) for message in part], add_generation_prompt=prompt, return_dict=False
            )
            encoded = template.encode(ours, part, prompt)
            assert list(encoded.ids) == expected
        encoded = template.encode(ours, messages)
        said = [message.content for message in messages if message.role == "assistant"]
        turns = [ours.decode(encoded.ids[begin:end]) for begin, end in encoded.turns()]
        end = ours.decode([template.stop_id(ours)])
        for turn, text in zip(turns, said, strict=True):
            assert turn.endswith(end) and turn.removesuffix(end).strip() == text.strip()


def test_a_template_that_lays_a_turn_out_otherwise_once_something_follows_is_refused_by_the_turn(gpt2: BPETokenizer):
    """As those do that leave out what was thought in earlier turns."""
    last = "{% if loop.last and m.role == 'assistant' %}hm {% endif %}"
    source = "{% for m in messages %}<|im_start|>{{ m.role }} " + last + "{{ m.content }}<|im_end|>{% endfor %}"
    thinking = ChatTemplate(source + "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}", "t.jinja")
    thinking.check_learnable(gpt2)
    with pytest.raises(UsageError, match=r"t.jinja: has no {% generation %} .*, and lays message 2 out otherwise than"):
        thinking.encode(gpt2, chat("a", "b", "c", "d"))
    silent = ChatTemplate("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}", "t.jinja")
    with pytest.raises(UsageError, match="t.jinja: leaves out what the assistant says, so there is nothing to learn"):
        ChatTemplate("{% generation %}{% endgeneration %}a<|im_end|>", "t.jinja").check_learnable(gpt2)
    assert silent.encode(gpt2, chat("a", "b")).turns()


def test_a_block_that_leaves_out_the_end_of_a_turn_is_refused(gpt2: BPETokenizer):
    endless = ChatTemplate(DEFAULT_TEMPLATE.source.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"))
    with pytest.raises(UsageError, match="leaves out '<.end.>', which ends the assistant's turn"):
        endless.check_learnable(gpt2)


def test_any_number_of_generation_blocks_is_found(small: BPETokenizer):
    """Even of those that begin where the first one did, as a template can make them that has the marks."""
    blocks = ("{% generation %}{{ c }}{% endgeneration %}{{ c }}", "{{ c }}{{ c }}\udfff")
    none = "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    for block, learnt in zip(blocks, (1 / 2, 1), strict=True):
        template = ChatTemplate("\udffe{% for c in messages[0].content %}" + block + "{% endfor %}x" + none)
        encoded = template.encode(small, chat("é" * 10_000))
        assert small.decode(encoded.ids) == "éé" * 10_000 + "x"
        assert sum(encoded.weights) == learnt * (len(encoded.ids) - 1)


def test_lone_surrogates_become_replacement_characters(gpt2: BPETokenizer):
    whole = DEFAULT_TEMPLATE.encode(gpt2, chat("a\ud800b", "\udfff\ud83d\ude42"))
    assert whole == DEFAULT_TEMPLATE.encode(gpt2, chat("a\ufffdb", "\ufffd🙂"))
    template = ChatTemplate("{{ '\\ud83d\\ude42' }}{% generation %}{{ messages[0].content }}{% endgeneration %}")
    encoded = template.encode(gpt2, chat("a"))
    assert gpt2.decode(encoded.ids) == "\ufffd\ufffda" and encoded.turns() == [(len(encoded.ids) - 1, len(encoded.ids))]
