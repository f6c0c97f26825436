"""Records → token ids, once for a whole data set; `examples` draws batches from them.

Nothing is cut short in secret: what doesn't fit is an error that names file and line, and of conversations, of which
whole turns can be left out, it is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.text.chat import ChatTemplate, Encoded
from jaxgpt.text.records import Conversation, Message, Preference, Prompt, Text
from jaxgpt.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class LabelledIds:
    """Token ids of a text, and the number of its label."""

    ids: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class Fitted:
    """Conversations that fit into rows.

    Attributes:
        conversations: whole, or cut at the end of an assistant's turn.
        cut: how many of them were cut.
        dropped: how many were left out, as not even their first turn of the assistant's fits.
    """

    conversations: list[Encoded]
    cut: int
    dropped: int


@dataclass(frozen=True)
class EncodedPair:
    """Two answers, each behind the same prompt and up to its last token; weights are 1 for the answer's tokens."""

    chosen: Encoded
    rejected: Encoded
    margin: float


def label_names(texts: Iterable[Text]) -> tuple[str, ...]:
    """Return the names of the labels in order: of numbers, if all are numbers."""
    names = {text.label for text in texts}
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))


def encode_labelled(
    texts: Iterable[Text], tokenizer: Tokenizer, *, labels: Sequence[str], length: int
) -> list[LabelledIds]:
    """Return the ids of texts with one of `labels` each, of at most `length` tokens.

    Raises:
        UsageError: naming file and line of another label or a longer text.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    encoded = []
    for text in texts:
        with _at(text.where):
            if text.label not in numbers:
                known = ", ".join(map(repr, labels))[:200]
                raise UsageError(f"label {text.label!r} is none of {known}{did_you_mean(text.label, labels)}")
            ids = _fitting(tokenizer.encode(text.text), length)
            encoded.append(LabelledIds(tuple(ids), numbers[text.label]))
    return encoded


def encode_conversations(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, template: ChatTemplate, *, length: int
) -> Fitted:
    """Return the tokens of conversations as far as `fit` lets them.

    Raises:
        UsageError: nothing can be learnt from the template, it fails on a conversation, or no conversation fits.
    """
    template.check_learnable(tokenizer)
    fitting: list[Encoded] = []
    cut = dropped = 0
    for conversation in conversations:
        with _at(conversation.where):
            whole = template.encode(tokenizer, conversation.messages)
        part = fit(whole, length)
        if part is None:
            dropped += 1
        else:
            fitting.append(part)
            cut += part is not whole
    if not fitting:
        raise UsageError(f"none of the {dropped} conversations has a turn of the assistant's within {length} tokens")
    return Fitted(fitting, cut, dropped)


def fit(conversation: Encoded, length: int) -> Encoded | None:
    """Return a conversation that fits into a row of `length`, which takes `length` + 1 tokens, the last as a target.

    One that is too long is cut at the end of the last turn of the assistant's that is whole within the row; one with
    no such turn is left out, and None returned.
    """
    if len(conversation.ids) <= length + 1:
        return conversation
    end = max((end for _, end in conversation.turns() if end <= length + 1), default=None)
    return None if end is None else Encoded(conversation.ids[:end], conversation.weights[:end])


def encode_pairs(
    pairs: Iterable[Preference], tokenizer: Tokenizer, template: ChatTemplate | None, *, length: int
) -> list[EncodedPair]:
    """Return the tokens of prompts with either answer, at most `length` in all.

    Raises:
        UsageError: naming file and line of what is longer, or of messages where there is no template for them.
    """
    encoded = []
    for pair in pairs:
        with _at(pair.where):
            answers = []
            for answer in (pair.chosen, pair.rejected):
                answers.append(encode_answer(pair.prompt, answer, tokenizer, template))
                _fitting(answers[-1].ids, length)
            encoded.append(EncodedPair(answers[0], answers[1], pair.margin))
    return encoded


def encode_answer(
    prompt: str | tuple[Message, ...],
    answer: str | tuple[Message, ...],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> Encoded:
    """Return the tokens of a prompt and an answer, up to the answer's last; those of the answer are to be learnt.

    Texts need no template: the answer's tokens follow the prompt's, and the end-of-text token those, if there is one.

    Raises:
        UsageError: messages without a template, or with one from which nothing can be learnt.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        begin, end = tokenizer.encode(prompt), tokenizer.encode(answer)
        if tokenizer.eos_token_id is not None:
            end.append(tokenizer.eos_token_id)
        return Encoded((*begin, *end), (0.0,) * len(begin) + (1.0,) * len(end))
    assert not isinstance(prompt, str) and not isinstance(answer, str)
    template = _needed(template)
    before = len(template.encode(tokenizer, prompt).turns())
    whole = template.encode(tokenizer, (*prompt, *answer))
    turns = whole.turns()[before:]
    if not turns:
        template.check_learnable(tokenizer)
        raise UsageError(f"{template.name}: leaves the answer out")
    begin, end = turns[0][0], turns[-1][1]
    return Encoded(whole.ids[:end], (0.0,) * begin + whole.weights[begin:end])


def encode_prompts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, template: ChatTemplate | None, *, length: int
) -> list[tuple[int, ...]]:
    """Return the ids of prompts, at most `length` each; messages with what the assistant's answer begins with.

    Raises:
        UsageError: naming file and line of what is longer, or of messages where there is no template for them.
    """
    encoded = []
    for prompt in prompts:
        with _at(prompt.where):
            if isinstance(prompt.prompt, str):
                ids = tuple(tokenizer.encode(prompt.prompt))
            else:
                ids = _needed(template).encode(tokenizer, prompt.prompt, add_generation_prompt=True).ids
            encoded.append(_fitting(ids, length))
    return encoded


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    """Let errors begin with the place of the record that they are about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _fitting(ids: Sequence[int], length: int) -> Sequence[int]:
    if len(ids) > length:
        raise UsageError(f"{len(ids)} tokens, but there is room for {length}")
    return ids


def _needed(template: ChatTemplate | None) -> ChatTemplate:
    if template is None:
        raise UsageError("messages need a chat template, which the tokenizer's folder has not; texts do without")
    return template
