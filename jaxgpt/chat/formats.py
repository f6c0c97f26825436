"""Records in the formats that people have → ours: OpenAI's, ShareGPT's, TRL's, Alpaca's, those of well-known data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from jaxgpt.chat.records import ROLES, Conversation, Message, Preference, Prompt, Text
from jaxgpt.errors import UsageError
from jaxgpt.notes import note

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
MESSAGE_FIELDS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
MESSAGE_KEYS = ("role", "content", "from", "value")
UNSUPPORTED_KEYS = ("tool_calls", "tool_call_id", "function_call", "weight")
"""Keys of messages that say what the text alone does not: one that has any of them is not what is learnt."""
ASSISTANT_SPEAKS = "\n\nAssistant:"
TEXT_COLUMN, LABEL_COLUMN = "text", "label"
OTHER_COLUMNS = {
    TEXT_COLUMN: ("sentence", "review", "content", "tweet", "message", "document"),
    LABEL_COLUMN: ("labels", "class", "category", "target", "sentiment"),
}
"""What these columns are called in other data; where there is one of these, it is taken."""
_MAX_MARGIN = 1e38  # of f32


def labelled(record: dict[str, Any], where: str, *, path: str, text_column: str, label_column: str) -> Text:
    """Return a text with its label.

    Args:
        record: the record.
        where: its place, for messages.
        path: the file, for notes.
        text_column: name of the field with the text; what is usual in its place is taken where it is the default.
        label_column: name of the field with the label; likewise.
    """
    text = _column(record, "text", text_column, where, path)
    label = _column(record, "label", label_column, where, path)
    if type(number := record.get(label)) is int:
        record[label] = str(number)
    return Text(_text(record, text, where), _text(record, label, where), where)


def conversation(record: dict[str, Any], where: str) -> Conversation:
    """Return a conversation, of any format that `reading.read_conversations` names."""
    if "messages" in record:
        messages = _messages(record, "messages", where)
    elif "conversations" in record:
        messages = _messages(record, "conversations", where)
    elif "completion" in record:
        prompt, completion = (_text_or_messages(record, name, where) for name in ("prompt", "completion"))
        messages = (*_as_messages(prompt, "user"), *_as_messages(completion, "assistant"))
    elif "instruction" in record:
        if record.get("history"):
            raise UsageError(f"{where}: 'history' is not read; its turns belong into 'messages'")
        request = _text(record, "instruction", where)
        if record.get("input") not in (None, ""):
            request += "\n\n" + _text(record, "input", where)
        messages = (Message("user", request), Message("assistant", _text(record, "output", where)))
    else:
        valid = "'messages', 'conversations', 'prompt' and 'completion', or 'instruction' and 'output'"
        raise UsageError(f"{where}: none of {valid} in it; {_fields(record)}")
    messages = _with_system(record, messages, where)
    if not any(message.role == "assistant" for message in messages):
        raise UsageError(f"{where}: no turn of the assistant to learn from")
    return Conversation(messages, where)


def pair(record: dict[str, Any], where: str) -> Preference:
    """Return a prompt and two answers, of any format that `reading.read_pairs` names."""
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
        prompt = _with_system(record, prompt, where)
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


def prompt(record: dict[str, Any], where: str) -> Prompt:
    """Return a prompt, of any format that `reading.read_prompts` names."""
    if "messages" in record:
        prompt = _messages(record, "messages", where)
    else:
        prompt = _text_or_messages(record, "prompt", where)
    if not isinstance(prompt, str):
        prompt = _with_system(record, prompt, where)
        _check_ends_with_user(prompt, "the prompt", where)
    return Prompt(prompt, where)


def ignored(record: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of messages that say nothing to us."""
    for name in MESSAGE_FIELDS:
        if isinstance(entries := record.get(name), list):
            for entry in entries:
                yield from (key for key, value in entry.items() if key not in MESSAGE_KEYS and value is not None)


def _column(record: dict[str, Any], role: str, name: str, where: str, path: str) -> str:
    """Return the name of the field that stands for a column: its own, or the only usual one in its place."""
    if name in record:
        return name
    others = [other for other in OTHER_COLUMNS.get(name, ()) if other in record]
    if len(others) != 1:
        raise UsageError(f"{where}: no field {name!r}; {_fields(record)}; --{role}_column says which it is")
    note(f"{path}: there is no {name!r}, so {others[0]!r} is read in its place (--{role}_column)")
    return others[0]


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


def _with_system(record: dict[str, Any], messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return messages with the system's before them where it stands in a field of its own, as Bedrock's does."""
    system = record.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    if not isinstance(system, str):
        raise UsageError(f"{where}: 'system' must be a text, not {_short(system)}")
    if messages and messages[0].role == "system":
        if messages[0].content != system:
            raise UsageError(f"{where}: 'system' is another text than the first message, which is the system's, too")
        return messages
    return (Message("system", system), *messages)


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
