"""What post-training reads: labelled texts, conversations, pairs of answers, prompts, from a user's own files.

Each keeps the place it was read from, so that an error about it can name that even when it turns up much later. Fields
beyond those that are named here are left alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from jaxgpt.data.record_files import read_records
from jaxgpt.errors import UsageError

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
MESSAGE_FIELDS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
MESSAGE_KEYS = ("role", "content", "from", "value")
UNSUPPORTED_KEYS = ("tool_calls", "tool_call_id", "function_call", "weight")
"""Keys of messages that say what the text alone does not: one that has any of them is not what is learnt."""
ASSISTANT_SPEAKS = "\n\nAssistant:"
BadRecords = Literal["drop", "error"]
SHOWN_BAD = 3
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


def read_labelled(path: str | Path, *, bad_records: BadRecords = "error") -> list[Text]:
    """Read texts with labels from a .jsonl, .json or .csv file with the fields `text` and `label`.

    Args:
        path: the file; each format may be compressed, as in .jsonl.gz.
        bad_records: what becomes of a record that can't be used: left out, counted and said, or an error.

    Raises:
        UsageError: naming file and line of what is broken, or of the first of the records that can't be used, where
            most can't. This holds for all that reads here.
    """
    return _read(path, (".jsonl", ".json", ".csv"), _labelled, bad_records)


def read_conversations(path: str | Path, *, bad_records: BadRecords = "error") -> list[Conversation]:
    """Read conversations from a .jsonl or .json file.

    A record is `{"messages": [{"role": …, "content": …}, …]}` as OpenAI has it, ShareGPT's `{"conversations":
    [{"from": "human", "value": …}, …]}`, TRL's `{"prompt": …, "completion": …}`, of texts or messages, or Alpaca's
    `{"instruction": …, "input": …, "output": …}`, whose input may be missing or empty.
    """
    return _read(path, (".jsonl", ".json"), _conversation, bad_records)


def read_pairs(path: str | Path, *, bad_records: BadRecords = "error") -> list[Preference]:
    """Read pairs of answers from a .jsonl or .json file, in TRL's formats and those of well-known data.

    The fields are `prompt`, `chosen` and `rejected`, each a text or a list of messages, and optionally `margin`. Where
    only some are messages, a text is taken for the one message. Both answers may be whole conversations that repeat
    the prompt, as UltraFeedback's are, or stand without one; then the messages that they begin with alike are the
    prompt. Of two texts without a prompt, which are transcripts as HH-RLHF's, it goes up to the last "Assistant:" that
    they share.
    """
    return _read(path, (".jsonl", ".json"), _pair, bad_records)


def read_prompts(path: str | Path, *, bad_records: BadRecords = "error") -> list[Prompt]:
    """Read prompts from a .jsonl or .json file, or from a .txt file with one a line.

    The field is `prompt`, a text or a list of messages, or `messages`; messages end with the user's.
    """
    return _read(path, (".jsonl", ".json", ".txt"), _prompt, bad_records, column="prompt")


def _read(
    path: str | Path,
    suffixes: tuple[str, ...],
    parse: Callable[[dict[str, Any], str], _Any],
    bad_records: BadRecords,
    column: str = "",
) -> list[_Any]:
    """Return what `parse` makes of a file's records; whatever is read passes through here."""
    found, bad, ignored = [], [], Counter[str]()
    for where, record in read_records(path, suffixes, column):
        try:
            found.append(parse(record, where))
        except UsageError as error:
            if bad_records == "error":
                raise
            bad.append(str(error))
        else:
            ignored.update(_ignored(record))
    if len(bad) > len(found):
        raise UsageError(f"{bad[0]}; {len(bad)} of {len(bad) + len(found)} records can't be used")
    if bad:
        shown = "; ".join(error.removeprefix(f"{path}:").strip()[:100] for error in bad[:SHOWN_BAD])
        of = f"{len(bad)} of {len(bad) + len(found)} records can't be used and are left out"
        print(f"note: {path}: {of}: {shown}{'; …' if len(bad) > SHOWN_BAD else ''}", file=sys.stderr)
    if ignored:
        keys = ", ".join(f"{key!r} ({count})" for key, count in ignored.most_common(SHOWN_BAD))
        print(f"note: {path}: keys of messages that are left alone: {keys[:200]}", file=sys.stderr)
    return found


def _labelled(record: dict[str, Any], where: str) -> Text:
    if type(number := record.get("label")) is int:
        record["label"] = str(number)
    return Text(_text(record, "text", where), _text(record, "label", where), where)


def _conversation(record: dict[str, Any], where: str) -> Conversation:
    if "messages" in record:
        messages = _messages(record, "messages", where)
    elif "conversations" in record:
        messages = _messages(record, "conversations", where)
    elif "completion" in record:
        prompt, completion = (_text_or_messages(record, name, where) for name in ("prompt", "completion"))
        messages = (*_as_messages(prompt, "user"), *_as_messages(completion, "assistant"))
    elif "instruction" in record:
        request = _text(record, "instruction", where)
        if record.get("input") not in (None, ""):
            request += "\n\n" + _text(record, "input", where)
        messages = (Message("user", request), Message("assistant", _text(record, "output", where)))
    else:
        valid = "'messages', 'conversations', 'prompt' and 'completion', or 'instruction' and 'output'"
        raise UsageError(f"{where}: none of {valid} in it; {_fields(record)}")
    if not any(message.role == "assistant" for message in messages):
        raise UsageError(f"{where}: no turn of the assistant to learn from")
    return Conversation(messages, where)


def _pair(record: dict[str, Any], where: str) -> Preference:
    chosen, rejected = (_text_or_messages(record, name, where) for name in ("chosen", "rejected"))
    prompt = _text_or_messages(record, "prompt", where) if "prompt" in record else None
    if chosen == rejected:
        raise UsageError(f"{where}: chosen and rejected are equal")
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _transcripts(chosen, rejected, where)
    elif not isinstance(chosen, str) and not isinstance(rejected, str):
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        shared = tuple(message for message, _ in alike)
        if prompt is None or (shared and _repeats(shared, prompt)):
            prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    elif prompt is None:
        raise UsageError(f"{where}: no field 'prompt', and one answer is a text, the other messages; {_fields(record)}")
    if not all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        prompt, chosen, rejected = (
            _as_messages(part, role)
            for part, role in ((prompt, "user"), (chosen, "assistant"), (rejected, "assistant"))
        )
        _check_ends_with_user(prompt, "the prompt", where)
        _check_answer(chosen, "chosen", where)
        _check_answer(rejected, "rejected", where)
    return Preference(prompt, chosen, rejected, _margin(record, where), where)


def _transcripts(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """Return the prompt that two transcripts share, with the words that the answer follows, and both answers."""
    end = commonprefix([chosen, rejected]).rfind(ASSISTANT_SPEAKS) + len(ASSISTANT_SPEAKS)
    if end < len(ASSISTANT_SPEAKS):
        raise UsageError(f"{where}: no field 'prompt', and no {ASSISTANT_SPEAKS!r} that chosen and rejected share")
    for name, transcript in (("chosen", chosen), ("rejected", rejected)):
        if not transcript[end:].strip():
            raise UsageError(f"{where}: {name!r} ends without an answer")
    return chosen[:end], chosen[end:], rejected[end:]


def _repeats(shared: tuple[Message, ...], prompt: str | tuple[Message, ...]) -> bool:
    """Return whether messages have the prompt among them: a text in one of the user's, messages at the beginning."""
    if isinstance(prompt, str):
        return any(message.role == "user" and message.content == prompt for message in shared)
    return shared[: len(prompt)] == prompt


def _prompt(record: dict[str, Any], where: str) -> Prompt:
    if "messages" in record:
        prompt = _messages(record, "messages", where)
    else:
        prompt = _text_or_messages(record, "prompt", where)
    if not isinstance(prompt, str):
        _check_ends_with_user(prompt, "the prompt", where)
    return Prompt(prompt, where)


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


def _as_messages(value: str | tuple[Message, ...], role: str) -> tuple[Message, ...]:
    return (Message(role, value),) if isinstance(value, str) else value


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
        for key in UNSUPPORTED_KEYS:
            if entry.get(key) not in (None, [], {}, ""):
                raise UsageError(f"{place} has {key!r}, which is not supported; valid are 'role' and 'content'")
        speaker, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        role = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) and "role" not in entry else speaker
        if role not in ROLES:
            raise UsageError(f"{place}: role is {_short(role)}; valid are {', '.join(ROLES)}")
        if role == "system" and number > 1:
            raise UsageError(f"{place}: role system; it may only come first")
        if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
            continue  # none is meant
        if not isinstance(content, str) or not content.strip():
            raise UsageError(f"{place}: content must be a text that is not empty, not {_short(content)}")
        messages.append(Message(role, content))
    return tuple(messages)


def _ignored(record: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of messages that say nothing to us."""
    for name in MESSAGE_FIELDS:
        if isinstance(entries := record.get(name), list):
            for entry in entries:
                yield from (key for key, value in entry.items() if key not in MESSAGE_KEYS and value is not None)


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
