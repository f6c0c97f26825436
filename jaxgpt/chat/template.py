"""Conversations → token ids, and each token's weight in the loss: 1 for what the assistant says, else 0.

A chat template, as transformers keeps it beside a tokenizer, lays a conversation out as one text. Tokens of the
template, such as `<|end|>`, are special tokens; the same letters inside a message are plain text, so that no message
can end its own turn or speak for another role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.chat.records import Message
from jaxgpt.chat.spans import has_blocks, render_turns
from jaxgpt.chat.template_process import Template
from jaxgpt.errors import UsageError
from jaxgpt.files import regular
from jaxgpt.tokenizers.bpe import replace_surrogates
from jaxgpt.tokenizers.bpe_files import read_chat_template, write_chat_template
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer

_TOKEN = re.compile(r"<\|[^|<>\s]+\|>")
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each its weight as a target of the loss.

    Attributes:
        ids: of the whole text.
        weights: 1 for tokens to learn, the end of the turn among them; else 0.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def turns(self) -> list[tuple[int, int]]:
        """Return the assistant's turns, runs of tokens to learn: each one's first token, and one past its last."""
        edges = np.flatnonzero(np.diff([0.0, *self.weights, 0.0])).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja, of Hugging Face's kind: it is given `messages` and `add_generation_prompt`.

    Attributes:
        source: the template. What the assistant is to learn, with the token that ends its turn, stands in
            `{% generation %}` blocks; in one without any it is what each turn of the assistant's adds.
        name: the file it is from, for messages.
    """

    source: str
    name: str = field(default="the chat template", compare=False)

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate | None:
        """Return the template in a folder, or None where it has none."""
        found = read_chat_template(Path(directory))
        return None if found is None else cls(found[0], str(found[1]))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return the template that goes along with a tokenizer, or None where none does."""
        source = tokenizer.chat_template if isinstance(tokenizer, BPETokenizer) else None
        return None if source is None else cls(source, "the tokenizer's chat template")

    @classmethod
    def read(cls, file: str | Path) -> ChatTemplate:
        """Read a template from a file of its own.

        Raises:
            UsageError: there is no such file, or it is no text.
        """
        try:
            return cls(regular(file).read_bytes().decode(), str(file))
        except OSError as error:
            raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{file}: not UTF-8 at byte {error.start}") from None

    def save(self, directory: str | Path) -> None:
        """Write `chat_template.jinja` into `directory`, by which transformers' `apply_chat_template` gives equal ids.

        A tokenizer from `add_template` does this when it is saved.
        """
        write_chat_template(Path(directory), self.source)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts in the template that look like special tokens, `<|…|>`, in the order of appearance."""
        return tuple(dict.fromkeys(chain.from_iterable(map(_TOKEN.findall, self._template.texts()))))

    def encode(self, tokenizer: Tokenizer, messages: Iterable[Message], add_generation_prompt: bool = False) -> Encoded:
        """Return the tokens of a conversation, as `encode_all` does of many."""
        return next(self.encode_all(tokenizer, [messages], add_generation_prompt))

    def render(self, tokenizer: Tokenizer, messages: Iterable[Message], add_generation_prompt: bool = False) -> str:
        """Return a conversation as a text, for who takes nothing but texts: a message may spell special tokens in it.

        Arguments and errors are those of `encode_all`.
        """
        given = self._variables(self._check(tokenizer), add_generation_prompt)
        given["messages"] = [{"role": message.role, "content": message.content} for message in messages]
        [(text, _)] = self._template.render([given])
        return text

    def encode_all(
        self, tokenizer: Tokenizer, conversations: Iterable[Iterable[Message]], add_generation_prompt: bool = False
    ) -> Iterator[Encoded]:
        """Yield the tokens of each conversation.

        A token of which a `{% generation %}` block has made only a part is one to learn, as in transformers.

        Args:
            tokenizer: has the template's special tokens.
            conversations: the conversations, of which some are read ahead.
            add_generation_prompt: end with what an answer of the assistant's begins with.

        Raises:
            UsageError: the tokenizer lacks tokens, or the template fails on the conversation whose turn it is.
        """
        tokenizer = self._check(tokenizer)
        # In messages, the first letter of a special token gives way to a stand-in that no text can hold, until special
        # tokens have been found. As that is a letter for a letter, places in the text stay what they are.
        letters = sorted({token[0] for token in tokenizer.special_tokens})
        stand_ins = dict(zip(letters, map(chr, _SURROGATES), strict=False))
        restored = dict.fromkeys(_SURROGATES, "\ufffd") | {ord(mark): letter for letter, mark in stand_ins.items()}
        variables = self._variables(tokenizer, add_generation_prompt)
        given = (variables | {"messages": _plain(messages, tokenizer, stand_ins)} for messages in conversations)
        marked = add_generation_prompt or has_blocks(self._template)  # what is to be answered is not learnt from
        for text, spans in self._template.render(given) if marked else render_turns(self._template, given):
            ids: list[int] = []
            sizes: list[int] = []
            for part, token in tokenizer.added.split(text, allow_special=True):
                part = part.translate(restored)
                own = tokenizer.encode_parts([(part, token)])
                ids.extend(own)
                # An added token may have taken white space with it.
                sizes.extend(map(tokenizer.size, own) if token is None else [len(part.encode())])
            yield Encoded(tuple(ids), _covered(text.translate(restored), sizes, spans))

    def _variables(self, tokenizer: BPETokenizer, add_generation_prompt: bool) -> dict[str, Any]:
        roles = {role: text for role, text in tokenizer.roles.items() if text is not None}
        return {"add_generation_prompt": add_generation_prompt, **roles}

    def stop_id(self, tokenizer: Tokenizer) -> int:
        """Return the id that ends an assistant's turn.

        Raises:
            UsageError: turns don't end with a special token, so nothing tells a turn's end from its text.
        """
        ids, at = self._sample(tokenizer)
        return ids.ids[at]

    def check_learnable(self, tokenizer: Tokenizer) -> None:
        """Make sure that the template says what an assistant learns, and that the end of its turn is a part of that.

        Raises:
            UsageError: it does not.
        """
        sample, at = self._sample(tokenizer)
        if not any(sample.weights):
            raise UsageError(f"{self.name}: leaves out what the assistant says, so there is nothing to learn")
        if not sample.weights[at]:
            raise UsageError(
                f"{self.name}: the {{% generation %}} block leaves out {tokenizer.decode([sample.ids[at]])!r}, which "
                "ends the assistant's turn, so that the model would not learn to stop"
            )

    @cached_property
    def _template(self) -> Template:
        return Template(self.source, self.name)

    def _check(self, tokenizer: Tokenizer) -> BPETokenizer:
        bpe = _with_room(tokenizer, self.special_tokens)
        if missing := [token for token in self.special_tokens if token not in bpe.added_tokens]:
            raise UsageError(f"{self.name}: the tokenizer has no special tokens {', '.join(missing)}")
        return bpe

    def _sample(self, tokenizer: Tokenizer) -> tuple[Encoded, int]:
        """Return the smallest conversation, and the place of the token that ends it, white space aside."""
        sample = self.encode(tokenizer, (Message("user", "x"), Message("assistant", "y")))
        at = max((i for i, token in enumerate(sample.ids) if tokenizer.decode([token]).strip()), default=0)
        ends = {token.id for token in _with_room(tokenizer, ()).added_tokens.values()}
        if not sample.ids or sample.ids[at] not in ends:
            raise UsageError(f"{self.name}: the assistant's turn does not end with a special token")
        return sample, at


# Nothing stands between a special token and a message: whatever the message begins with, it is encoded as if alone.
DEFAULT_TEMPLATE = ChatTemplate(
    """\
{%- for message in messages -%}
  {%- if message.role == "system" -%}
    <|system|>{{ message.content }}<|end|>
  {%- elif message.role == "user" -%}
    <|user|>{{ message.content }}<|end|>
  {%- elif message.role == "assistant" -%}
    <|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}
  {%- else -%}
    {{ raise_exception("role " ~ message.role ~ ": valid are system, user, assistant") }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|assistant|>
{%- endif -%}
""",
    "the default chat template",
)


def add_template(tokenizer: Tokenizer, template: ChatTemplate) -> BPETokenizer:
    """Return a tokenizer that has all of a template's special tokens, and saves the template with its own files."""
    try:
        added = add_special_tokens(tokenizer, template.special_tokens)
    except UsageError as error:
        raise UsageError(f"{template.name}: {error}") from None
    added.chat_template = template.source
    return added


def add_special_tokens(tokenizer: Tokenizer, tokens: Iterable[str]) -> BPETokenizer:
    """Return a tokenizer that has `tokens` too, behind its last id; ids of what it had stay as they are.

    Raises:
        UsageError: the vocabulary is one of characters, or has a token's text as an ordinary piece.
    """
    return _with_room(tokenizer, tokens).with_special_tokens(tokens)


def _with_room(tokenizer: Tokenizer, tokens: Iterable[str]) -> BPETokenizer:
    if not isinstance(tokenizer, BPETokenizer):
        raise UsageError(
            f"a {tokenizer.name} tokenizer can't have the special tokens {', '.join(tokens)}, which conversations "
            "need; train a model with --tokenizer bpe"
        )
    return tokenizer


def _plain(messages: Iterable[Message], tokenizer: BPETokenizer, stand_ins: dict[str, str]) -> list[dict[str, str]]:
    """Return messages as a template is given them, in which nothing is a special token."""
    return [{"role": message.role, "content": _disguise(message.content, tokenizer, stand_ins)} for message in messages]


def _covered(text: str, sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return 1 for each of a text's tokens of which a span has at least a part, else 0.

    Its time grows with the text and not with spans times text, whatever spans a template makes.

    Args:
        text: the text.
        sizes: of its tokens, in bytes of UTF-8.
        spans: places in the text.
    """
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    begin, end = bytes_before[np.array(spans, np.int64).reshape(-1, 2)].T
    ends = np.cumsum(sizes)
    first, past = np.searchsorted(ends, begin, "right"), np.searchsorted(ends - sizes, end, "left")
    begun = np.zeros(len(sizes) + 1)
    np.add.at(begun, first, 1)
    np.add.at(begun, np.maximum(first, past), -1)
    return tuple((np.cumsum(begun[:-1]) > 0).astype(float).tolist())


def _disguise(text: str, tokenizer: BPETokenizer, stand_ins: dict[str, str]) -> str:
    text = replace_surrogates(text)
    for token in tokenizer.special_tokens:
        while token in text:  # again, as it may overlap itself
            text = text.replace(token, stand_ins[token[0]] + token[1:])
    return text
