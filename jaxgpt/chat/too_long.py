"""Examples with more tokens than there is room for: cut, left out, or an error; never without a word.

A conversation and a text lose their ends, as by TRL and transformers, a prompt its beginning; of a pair first the
prompt, down to half of the room, then the answers at their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from jaxgpt.chat.records import Message, TooLong
from jaxgpt.chat.template import ChatTemplate, Encoded
from jaxgpt.errors import UsageError
from jaxgpt.notes import note
from jaxgpt.tokenizers.tokenizer import Tokenizer

SHOWN_PLACES = 3
_Any = TypeVar("_Any")


class Fitting:
    """Makes examples fit into `room` tokens, counts what that takes, and says so.

    Args:
        what: the examples' name, in the plural.
        room: tokens that one may have.
        too_long: what becomes of one that has more.
    """

    def __init__(self, what: str, room: int, too_long: TooLong) -> None:
        self._what, self._room, self._too_long = what, room, too_long
        self._kept = 0
        self._cut: list[str] = []
        self._dropped: list[str] = []

    def take(self, where: str, size: int, example: _Any, cut: Callable[[], _Any | None]) -> Iterator[_Any]:
        """Yield an example of `size` tokens, or what `cut` makes of it; nothing where it is left out.

        Raises:
            UsageError: it is too long, and that is to be an error.
        """
        fitting: _Any | None = example
        if size > self._room:
            if self._too_long == "error":
                raise UsageError(f"{size} tokens, but there is room for {self._room}")
            fitting = cut() if self._too_long == "cut" else None
            (self._dropped if fitting is None else self._cut).append(where)
        if fitting is not None:
            self._kept += 1
            yield fitting

    def finish(self) -> None:
        """Say what was cut and what was left out.

        Raises:
            UsageError: nothing is left.
        """
        count = self._kept + len(self._dropped)
        if not self._kept:
            first = f"; the first is {self._dropped[0]}" if self._dropped else ""
            raise UsageError(f"none of the {count} {self._what} fits into {self._room} tokens{first}")
        for places, done in ((self._cut, "cut"), (self._dropped, "left out")):
            if places:
                shown = ", ".join(places[:SHOWN_PLACES]) + (", …" if len(places) > SHOWN_PLACES else "")
                said = f"{len(places):,} of {count:,} {self._what} have more than {self._room} tokens and are {done}"
                note(f"{said}: {shown} (--too_long)")


def cut_conversation(conversation: Encoded, room: int) -> Encoded | None:
    """Return a conversation's first `room` tokens, or None where none of them is to be learnt."""
    cut = _first(conversation, room)
    return cut if any(cut.weights) else None


def cut_answers(chosen: Encoded, rejected: Encoded, room: int) -> tuple[Encoded, Encoded] | None:
    """Return two answers without the ends that go beyond the room, or None where nothing tells them apart any more."""
    cut = _first(chosen, room), _first(rejected, room)
    if cut[0].ids == cut[1].ids or not (any(cut[0].weights) and any(cut[1].weights)):
        return None
    return cut


def prompt_room(prompts: Iterable[int], wholes: Iterable[int], room: int) -> int:
    """Return how many tokens of a prompt are kept: as many as the longer answer leaves, but at least half of `room`.

    Args:
        prompts: tokens of the prompt before either answer.
        wholes: tokens of both together.
        room: for both together.
    """
    longest = max(whole - prompt for prompt, whole in zip(prompts, wholes, strict=True))
    return max(room - longest, room // 2)


def cut_text(ids: tuple[int, ...], room: int, tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """Return a text's ids without its beginning, but with the tokens that the tokenizer puts before every text."""
    begin = tuple(tokenizer.ends.begin)
    kept = room - len(begin)
    return (*begin, *ids[max(len(ids) - kept, len(begin)) :]) if kept > 0 else None


def cut_messages(
    messages: tuple[Message, ...], room: int, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[Message, ...] | None:
    """Return messages that take at most `room` tokens with what an answer begins with, whole but for the last one.

    The system's message stays. Of the others the first ones go, up to one of the user's; where the last one alone is
    too long, it loses its beginning. None where nothing of it fits.
    """
    head = messages[:1] if messages[0].role == "system" else ()
    begins = [i for i, message in enumerate(messages) if message.role == "user"]
    shorter = [(*head, *messages[i:]) for i in begins]
    sizes = [len(one.ids) for one in template.encode_all(tokenizer, shorter, add_generation_prompt=True)]
    for fewer, size in zip(shorter, sizes, strict=True):
        if size <= room:
            return fewer
    last, over = messages[-1], sizes[-1] - room
    ids = tokenizer.encode_part(last.content)
    while (kept := len(ids) - over) > 0:
        text = tokenizer.decode(ids[-kept:]).lstrip("\ufffd")  # a character may have been cut in two
        cut = (*head, replace(last, content=text))
        beyond = len(template.encode(tokenizer, cut, add_generation_prompt=True).ids) - room if text.strip() else 1
        if beyond <= 0:
            return cut
        over += beyond
    return None


def _first(encoded: Encoded, count: int) -> Encoded:
    return Encoded(encoded.ids[:count], encoded.weights[:count])
