"""Records of post-training: labelled texts, conversations, pairs of answers and prompts.

Each keeps the place it was read from, so that an error about it can name that even when it turns up much later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from jaxgpt.errors import UsageError

BadRecords = Literal["drop", "error"]
"""What becomes of a record that can't be used."""
TooLong = Literal["cut", "drop", "error"]
"""What becomes of an example with more tokens than there is room for."""
ROLES = ("system", "user", "assistant")
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


def split(records: Sequence[_Any], val_fraction: float, *, seed: int) -> tuple[list[_Any], list[_Any]]:
    """Return records to train on and records to validate on, each in their order, drawn by `seed`.

    Raises:
        UsageError: a fraction that is none, or fewer than two records.
    """
    import numpy as np

    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction {val_fraction}: must be above 0 and below 1")
    if len(records) < 2:
        raise UsageError(f"{len(records)} records can't be split into some to train on and some to validate on")
    held_out = min(max(round(val_fraction * len(records)), 1), len(records) - 1)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(records))
    val, train = (sorted(part.tolist()) for part in np.split(order, [held_out]))
    return [records[i] for i in train], [records[i] for i in val]
