"""What post-training reads: labelled texts, conversations, pairs of answers, prompts, from a user's own files.

Each keeps the place it was read from, so that an error about it can name that even when it turns up much later. Fields
beyond those that are named here are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.text.record_files import read_records

ROLES = ("system", "user", "assistant")
_MAX_MARGIN = 1e38  # of f32
_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Text:
    """A text and the name of its label."""

    text: str
    label: str
    where: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of which at least one is the assistant's."""

    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers to it: all three texts, or all three messages.

    Attributes:
        prompt: what is answered; messages end with the user's.
        chosen: the better answer; messages begin and end with the assistant's.
        rejected: the worse one.
        margin: by how much it is better; 0 where the data does not say.
        where: the place it was read from.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    margin: float
    where: str


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or messages of which the last one, the user's, is to be answered."""

    prompt: str | tuple[Message, ...]
    where: str

    @property
    def asked(self) -> str:
        """The text, or the user's last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


def read_labelled(path: str | Path) -> list[Text]:
    """Read texts with labels from a .jsonl, .json or .csv file with the fields `text` and `label`.

    Raises:
        UsageError: naming file and line of what is broken. This holds for all that reads here.
    """
    texts = []
    for where, record in read_records(path, (".jsonl", ".json", ".csv")):
        if type(number := record.get("label")) is int:
            record["label"] = str(number)
        texts.append(Text(_text(record, "text", where), _text(record, "label", where), where))
    return texts


def read_conversations(path: str | Path) -> list[Conversation]:
    """Read conversations from a .jsonl or .json file.

    A record is `{"messages": [{"role": …, "content": …}, …]}` as OpenAI has it, or Alpaca's `{"instruction": …,
    "input": …, "output": …}`, whose input may be missing or empty.
    """
    conversations = []
    for where, record in read_records(path, (".jsonl", ".json")):
        if "messages" in record:
            messages = _messages(record, "messages", where)
        elif "instruction" in record:
            request = _text(record, "instruction", where)
            if record.get("input") not in (None, ""):
                request += "\n\n" + _text(record, "input", where)
            messages = (Message("user", request), Message("assistant", _text(record, "output", where)))
        else:
            raise UsageError(f"{where}: neither 'messages' nor 'instruction' and 'output' in it; {_fields(record)}")
        if not any(message.role == "assistant" for message in messages):
            raise UsageError(f"{where}: no turn of the assistant to learn from")
        conversations.append(Conversation(messages, where))
    return conversations


def read_pairs(path: str | Path) -> list[Preference]:
    """Read pairs of answers from a .jsonl or .json file, in TRL's formats.

    The fields are `prompt`, `chosen` and `rejected`, each a text or a list of messages, and optionally `margin`. Where
    only some are messages, a text is taken for the one message. Without `prompt`, both answers are whole conversations,
    and the messages that they begin with alike are the prompt.
    """
    pairs = []
    for where, record in read_records(path, (".jsonl", ".json")):
        chosen, rejected = (_text_or_messages(record, name, where) for name in ("chosen", "rejected"))
        if "prompt" in record:
            prompt = _text_or_messages(record, "prompt", where)
        elif isinstance(chosen, str) or isinstance(rejected, str):
            raise UsageError(f"{where}: no field 'prompt'; only lists of messages may begin with it; {_fields(record)}")
        else:
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
            prompt = tuple(message for message, _ in alike)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
            if not chosen and not rejected:
                raise UsageError(f"{where}: chosen and rejected are equal")
        if not all(isinstance(part, str) for part in (prompt, chosen, rejected)):
            prompt = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            chosen, rejected = (
                (Message("assistant", answer),) if isinstance(answer, str) else answer for answer in (chosen, rejected)
            )
            _check_ends_with_user(prompt, "the prompt", where)
            _check_answer(chosen, "chosen", where)
            _check_answer(rejected, "rejected", where)
        if chosen == rejected:
            raise UsageError(f"{where}: chosen and rejected are equal")
        pairs.append(Preference(prompt, chosen, rejected, _margin(record, where), where))
    return pairs


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts from a .jsonl or .json file, or from a .txt file with one a line.

    The field is `prompt`, a text or a list of messages, or `messages`; messages end with the user's.
    """
    prompts = []
    for where, record in read_records(path, (".jsonl", ".json", ".txt"), column="prompt"):
        if "messages" in record:
            prompt = _messages(record, "messages", where)
        else:
            prompt = _text_or_messages(record, "prompt", where)
        if not isinstance(prompt, str):
            _check_ends_with_user(prompt, "the prompt", where)
        prompts.append(Prompt(prompt, where))
    return prompts


def split(records: Sequence[_Any], val_fraction: float, *, seed: int) -> tuple[list[_Any], list[_Any]]:
    """Return records to train on and records to validate on, each in their order, drawn by `seed`.

    Raises:
        UsageError: a fraction that is none, or fewer than two records.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction {val_fraction}: must be above 0 and below 1")
    if len(records) < 2:
        raise UsageError(f"{len(records)} records can't be split into some to train on and some to validate on")
    held_out = min(max(round(val_fraction * len(records)), 1), len(records) - 1)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(records))
    val, train = (sorted(part.tolist()) for part in np.split(order, [held_out]))
    return [records[i] for i in train], [records[i] for i in val]


def _text(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if value is None:
        raise UsageError(f"{where}: no field {name!r}; {_fields(record)}")
    if not isinstance(value, str):
        raise UsageError(f"{where}: {name!r} must be a text, not {_short(value)}")
    if not value.strip():
        raise UsageError(f"{where}: {name!r} is empty")
    return value


def _text_or_messages(record: dict[str, Any], name: str, where: str) -> str | tuple[Message, ...]:
    if isinstance(record.get(name), list):
        return _messages(record, name, where)
    return _text(record, name, where)


def _messages(record: dict[str, Any], name: str, where: str) -> tuple[Message, ...]:
    if record.get("tools") or record.get("functions"):
        raise UsageError(f"{where}: tools are not supported; leave out 'tools' and 'functions'")
    entries = record[name]
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: {name!r} must be a list of messages, not {_short(entries)}")
    messages = []
    for number, entry in enumerate(entries, start=1):
        place = f"{where}: message {number} of {name!r}"
        if not isinstance(entry, dict):
            raise UsageError(f"{place} must be an object with 'role' and 'content', not {_short(entry)}")
        if more := [key for key, value in entry.items() if key not in ("role", "content") and value is not None]:
            raise UsageError(f"{place} has {more[0]!r}, which is not supported; valid are 'role' and 'content'")
        role, content = entry.get("role"), entry.get("content")
        if role not in ROLES:
            raise UsageError(f"{place}: role is {_short(role)}; valid are {', '.join(ROLES)}")
        if role == "system" and number > 1:
            raise UsageError(f"{place}: role system; it may only come first")
        if not isinstance(content, str) or not content.strip():
            raise UsageError(f"{place}: content must be a text that is not empty, not {_short(content)}")
        messages.append(Message(role, content))
    return tuple(messages)


def _check_ends_with_user(messages: tuple[Message, ...], what: str, where: str) -> None:
    if not messages or messages[-1].role != "user":
        raise UsageError(f"{where}: {what} must end with a message of the user's")


def _check_answer(messages: tuple[Message, ...], name: str, where: str) -> None:
    if not messages or messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise UsageError(
            f"{where}: {name!r} must begin and end with a message of the assistant's behind the prompt; where it "
            "repeats the prompt, leave out the field 'prompt'"
        )


def _margin(record: dict[str, Any], where: str) -> float:
    margin = record.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < _MAX_MARGIN:
        raise UsageError(f"{where}: 'margin' must be a finite number, not {_short(margin)}")
    return float(margin)


def _fields(record: dict[str, Any]) -> str:
    return f"its fields are {', '.join(map(repr, record))[:200]}" if record else "it has no fields"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
