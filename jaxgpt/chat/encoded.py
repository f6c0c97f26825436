"""Records → token ids, once for a whole data set; `examples` draws batches from them.

Nothing is cut short in secret: what doesn't fit is an error that names file and line, and of conversations, of which
whole turns can be left out, it is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from jaxgpt.chat.records import Conversation, Message, Preference, Prompt, Text
from jaxgpt.chat.template import ChatTemplate, Encoded
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.tokenizers.tokenizer import Tokenizer

_Any = TypeVar("_Any")


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
    conversations = list(conversations)
    encoded = template.encode_all(tokenizer, (conversation.messages for conversation in conversations))
    for conversation in conversations:
        with _at(conversation.where):
            whole = next(encoded)
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
    """Return the tokens of prompts with either answer, up to the answer's last, at most `length` in all.

    Texts need no template: the answer's tokens follow the prompt's, and the end-of-text token those, if there is one.

    Raises:
        UsageError: naming file and line of what is longer, or of messages where there is no template for them, or one
            from which nothing can be learnt.
    """
    pairs = list(pairs)
    told = template and template.encode_all(tokenizer, chain.from_iterable(map(_conversations, pairs)))
    encoded = []
    for pair in pairs:
        with _at(pair.where):
            if isinstance(pair.prompt, str):
                chosen, rejected = (
                    _continued(pair.prompt, str(one), tokenizer) for one in (pair.chosen, pair.rejected)
                )
            else:
                template, told = _needed(template), _needed(told)
                prompt = next(told)
                chosen, rejected = (_answer(prompt, next(told), tokenizer, template) for _ in range(2))
            for answer in (chosen, rejected):
                _fitting(answer.ids, length)
            encoded.append(EncodedPair(chosen, rejected, pair.margin))
    return encoded


def encode_prompts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, template: ChatTemplate | None, *, length: int
) -> list[tuple[int, ...]]:
    """Return the ids of prompts, at most `length` each; messages with what the assistant's answer begins with.

    Raises:
        UsageError: naming file and line of what is longer, or of messages where there is no template for them.
    """
    prompts = list(prompts)
    conversations = (prompt.prompt for prompt in prompts if not isinstance(prompt.prompt, str))
    told = template and template.encode_all(tokenizer, conversations, add_generation_prompt=True)
    encoded = []
    for prompt in prompts:
        with _at(prompt.where):
            if isinstance(prompt.prompt, str):
                ids = begun(prompt.prompt, tokenizer)
            else:
                ids = next(_needed(told)).ids
            encoded.append(_fitting(ids, length))
    return encoded


def _conversations(pair: Preference) -> Iterator[tuple[Message, ...]]:
    """Yield what a template is to lay out: the prompt, and with either answer; nothing of texts."""
    for answer in ((), pair.chosen, pair.rejected):
        if not isinstance(pair.prompt, str) and not isinstance(answer, str):
            yield (*pair.prompt, *answer)


def begun(text: str, tokenizer: Tokenizer, allow_special: bool = False) -> tuple[int, ...]:
    """Return the ids of a text that is to be continued: with what begins a text, and without what ends one."""
    return (*tokenizer.ends.begin, *tokenizer.encode_part(text, allow_special))


def _continued(prompt: str, answer: str, tokenizer: Tokenizer) -> Encoded:
    """Return the tokens of two texts, those of the second to be learnt."""
    begin, end = begun(prompt, tokenizer), tokenizer.encode_part(answer)
    end += tokenizer.ends.end
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in tokenizer.ends.end:
        end.append(tokenizer.eos_token_id)
    return Encoded((*begin, *end), (0.0,) * len(begin) + (1.0,) * len(end))


def _answer(prompt: Encoded, whole: Encoded, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded:
    """Return a conversation up to the last token of the turns that the prompt has not; they alone are to be learnt."""
    turns = whole.turns()[len(prompt.turns()) :]
    if not turns:
        template.check_learnable(tokenizer)
        raise UsageError(f"{template.name}: leaves the answer out")
    begin, end = turns[0][0], turns[-1][1]
    return Encoded(whole.ids[:end], (0.0,) * begin + whole.weights[begin:end])


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


def _needed(template: _Any | None) -> _Any:
    if template is None:
        raise UsageError("messages need a chat template, which the tokenizer's folder has not; texts do without")
    return template
