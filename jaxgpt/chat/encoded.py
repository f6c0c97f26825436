"""Records → token ids, once for a whole data set; `examples` draws batches from them.

What doesn't fit is cut or left out, and a note says how many and where, or it is an error that names file and line:
see `fitting`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TypeVar

from jaxgpt import checks
from jaxgpt.chat.records import Conversation, Message, Preference, Prompt, Text, TooLong
from jaxgpt.chat.template import ChatTemplate, Encoded
from jaxgpt.chat.too_long import Fitting, cut_answers, cut_conversation, cut_messages, cut_text, prompt_room
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.progress import bar
from jaxgpt.tokenizers.tokenizer import Tokenizer

_Any = TypeVar("_Any")


@dataclass(frozen=True)
class LabelledIds:
    """Token ids of a text, and the number of its label."""

    ids: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class EncodedPair:
    """Two answers, each behind the same prompt and up to its last token; weights are 1 for the answer's tokens."""

    chosen: Encoded
    rejected: Encoded
    margin: float


def encode_labelled(
    texts: Iterable[Text],
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str],
    length: int,
    too_long: TooLong = "error",
) -> list[LabelledIds]:
    """Return the ids of texts with one of `labels` each, of at most `length` tokens.

    Args:
        texts: the texts.
        tokenizer: gives the ids.
        labels: their names, in order.
        length: tokens that a text may have.
        too_long: what becomes of one that has more; cut, it keeps its beginning.

    Raises:
        UsageError: naming file and line of another label or, if that is to be an error, a longer text; or no text fits.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    fitting, encoded, end = Fitting("texts", length, too_long), [], tokenizer.ends.end
    for text in bar("encoding", checks.records("texts", texts, Text), unit="texts"):
        with _at(text.where):
            if text.label not in numbers:
                known = ", ".join(map(repr, labels))[:200]
                raise UsageError(f"label {text.label!r} is none of {known}{did_you_mean(text.label, labels)}")
            ids = tokenizer.encode(text.text)
            cut = partial(_beginning, ids, length, end)
            for fit in fitting.take(text.where, len(ids), ids, cut):
                encoded.append(LabelledIds(tuple(fit), numbers[text.label]))
    fitting.finish()
    return encoded


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    length: int,
    too_long: TooLong = "error",
) -> list[Encoded]:
    """Return the tokens of conversations that fit into rows of `length`: `length` + 1, as the last is only a target.

    Args:
        conversations: the conversations.
        tokenizer: has the template's special tokens.
        template: lays them out.
        length: of a row.
        too_long: what becomes of one that does not fit; cut, it ends where the room does, as by TRL, and one of which
            nothing of an answer is left is left out.

    Raises:
        UsageError: nothing can be learnt from the template, it fails on a conversation, one is too long, if that is to
            be an error, or none fits.
    """
    template.check_learnable(tokenizer)
    fitting, encoded, room = Fitting("conversations", length + 1, too_long), [], length + 1
    conversations = checks.records("conversations", conversations, Conversation)
    told = template.encode_all(tokenizer, (conversation.messages for conversation in conversations))
    for conversation in bar("encoding", conversations, unit="conversations"):
        with _at(conversation.where):
            whole = next(told)
            cut = partial(cut_conversation, whole, room)
            encoded.extend(fitting.take(conversation.where, len(whole.ids), whole, cut))
    fitting.finish()
    return encoded


def encode_pairs(
    pairs: Iterable[Preference],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    length: int,
    too_long: TooLong = "error",
) -> list[EncodedPair]:
    """Return the tokens of prompts with either answer, up to the answer's last, at most `length` in all.

    Texts need no template: the answer's tokens follow the prompt's, and the end-of-text token those, if there is one.

    Args:
        pairs: the pairs.
        tokenizer: gives the ids.
        template: lays messages out.
        length: tokens that a prompt may have with an answer.
        too_long: what becomes of a pair that has more. Cut, the prompt loses its beginning, but no more than half of
            the room, then the answers their ends, the end of text among them; a pair whose answers are then equal is
            left out.

    Raises:
        UsageError: naming file and line of what is longer, if that is to be an error, or of messages where there is no
            template for them, or one from which nothing can be learnt; or no pair fits.
    """
    pairs = checks.records("pairs", pairs, Preference)
    told = template and template.encode_all(tokenizer, chain.from_iterable(map(_conversations, pairs)))
    fitting, encoded = Fitting("pairs", length, too_long), []
    for pair in bar("encoding", pairs, unit="pairs"):
        with _at(pair.where):
            if isinstance(pair.prompt, str):
                prompt, answers = begun(pair.prompt, tokenizer), (str(pair.chosen), str(pair.rejected))
                whole = tuple(_continued(prompt, answer, tokenizer) for answer in answers)
            else:
                whole = _laid_out(_needed(told), tokenizer, _needed(template))
            size = max(len(one.ids) for one in whole)
            cut = partial(_cut_pair, pair, whole, length, tokenizer, template)
            for chosen, rejected in fitting.take(pair.where, size, whole, cut):
                encoded.append(EncodedPair(chosen, rejected, pair.margin))
    fitting.finish()
    return encoded


def encode_prompts(
    prompts: Iterable[Prompt],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    length: int,
    too_long: TooLong = "error",
) -> list[tuple[tuple[int, ...], Prompt]]:
    """Return prompts' ids, at most `length` each, and the prompts; messages with what the answer begins with.

    Args:
        prompts: the prompts.
        tokenizer: gives the ids.
        template: lays messages out.
        length: tokens that a prompt may have.
        too_long: what becomes of one that has more; cut, a text loses its beginning, messages the first of them, and
            the last one alone its beginning.

    Raises:
        UsageError: naming file and line of what is longer, if that is to be an error, or of messages where there is no
            template for them; or no prompt fits.
    """
    prompts = checks.records("prompts", prompts, Prompt)
    conversations = (prompt.prompt for prompt in prompts if not isinstance(prompt.prompt, str))
    told = template and template.encode_all(tokenizer, conversations, add_generation_prompt=True)
    fitting, encoded = Fitting("prompts", length, too_long), []
    for prompt in bar("encoding", prompts, unit="prompts"):
        with _at(prompt.where):
            if isinstance(prompt.prompt, str):
                ids = begun(prompt.prompt, tokenizer)
            else:
                ids = next(_needed(told)).ids
            cut = partial(_cut_prompt, prompt.prompt, length, tokenizer, template)
            encoded.extend((fit, prompt) for fit in fitting.take(prompt.where, len(ids), ids, cut))
    fitting.finish()
    return encoded


def _beginning(ids: Sequence[int], room: int, end: Sequence[int]) -> Sequence[int] | None:
    """Return a text's ids without its end, but with the tokens that the tokenizer puts behind every text."""
    kept = room - len(end)
    return [*ids[:kept], *end] if kept > 0 else None


def _cut_prompt(
    prompt: str | tuple[Message, ...], room: int, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[int, ...] | None:
    if isinstance(prompt, str):
        return cut_text(begun(prompt, tokenizer), room, tokenizer)
    template = _needed(template)
    cut = cut_messages(prompt, room, tokenizer, template)
    return None if cut is None else template.encode(tokenizer, cut, add_generation_prompt=True).ids


def _cut_pair(
    pair: Preference,
    whole: tuple[Encoded, ...],
    length: int,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> tuple[Encoded, ...] | None:
    """Return both answers behind what is left of the prompt, or None where that, or what tells them apart, is gone."""
    begins = [one.turns()[0][0] for one in whole]
    room = prompt_room(begins, (len(one.ids) for one in whole), length)
    if isinstance(pair.prompt, str):
        prompt = cut_text(begun(pair.prompt, tokenizer), room, tokenizer)
        if prompt is None:
            return None
        whole = tuple(
            Encoded((*prompt, *one.ids[begin:]), (0.0,) * len(prompt) + one.weights[begin:])
            for one, begin in zip(whole, begins, strict=True)
        )
    elif max(begins) > room:
        template = _needed(template)
        messages = cut_messages(pair.prompt, room, tokenizer, template)
        if messages is None:
            return None
        told = template.encode_all(tokenizer, _conversations(replace(pair, prompt=messages)))
        whole = _laid_out(told, tokenizer, template)
    chosen, rejected = whole
    return cut_answers(chosen, rejected, length)


def _laid_out(told: Iterator[Encoded], tokenizer: Tokenizer, template: ChatTemplate) -> tuple[Encoded, Encoded]:
    """Return a pair's two answers from what a template makes of `_conversations`."""
    prompt = next(told)
    chosen, rejected = (_answer(prompt, next(told), tokenizer, template) for _ in range(2))
    return chosen, rejected


def _conversations(pair: Preference) -> Iterator[tuple[Message, ...]]:
    """Yield what a template is to lay out: the prompt, and with either answer; nothing of texts."""
    for answer in ((), pair.chosen, pair.rejected):
        if not isinstance(pair.prompt, str) and not isinstance(answer, str):
            yield (*pair.prompt, *answer)


def begun(text: str, tokenizer: Tokenizer, allow_special: bool = False) -> tuple[int, ...]:
    """Return the ids of a text that is to be continued: with what begins a text, and without what ends one."""
    return (*tokenizer.ends.begin, *tokenizer.encode_part(text, allow_special))


def _continued(begin: tuple[int, ...], answer: str, tokenizer: Tokenizer) -> Encoded:
    """Return the tokens of an answer behind those of a text, the answer's to be learnt."""
    end = tokenizer.encode_part(answer)
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


def _needed(template: _Any | None) -> _Any:
    if template is None:
        raise UsageError("messages need a chat template, which the tokenizer's folder has not; texts do without")
    return template
