"""The plays → files of conversations and of prompts: to train on, to validate on, and prompts to test on.

Everything follows from the plays' text and a fixed seed. A prompt is one of `PHRASES` with one of `SPEAKERS`; what is
held out are combinations of the two, each of whose halves is trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxgpt.data.sources import PLAYS_FOLDER

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

PHRASES = (
    "Speak as {}.",
    "Say something as {}.",
    "What would {} say?",
    "Give me a line of {}.",
    "Let {} speak.",
    "How does {} talk?",
    "I want to hear {}.",
    "Be {} for a moment.",
)
# Name → the play, and what stands above this character's speeches there, in capitals.
SPEAKERS = {
    "HAMLET": ("hamlet", "HAM"),
    "HORATIO": ("hamlet", "HOR"),
    "POLONIUS": ("hamlet", "POL"),
    "BRUTUS": ("julius_caesar", "BRUTUS"),
    "CASSIUS": ("julius_caesar", "CASSIUS"),
    "LEAR": ("lear", "LEAR"),
    "KENT": ("lear", "KENT"),
    "GLOUCESTER": ("lear", "GLOU"),
    "EDGAR": ("lear", "EDG"),
    "MACBETH": ("macbeth", "MACBETH"),
    "SHYLOCK": ("merchant_of_venice", "SHYLOCK"),
    "PORTIA": ("merchant_of_venice", "PORTIA"),
    "BASSANIO": ("merchant_of_venice", "BASSANIO"),
    "OTHELLO": ("othello", "OTHELLO"),
    "IAGO": ("othello", "IAGO"),
    "DESDEMONA": ("othello", "DESDEMONA"),
    "EMILIA": ("othello", "EMILIA"),
    "CASSIO": ("othello", "CASSIO"),
    "ROMEO": ("romeo_and_juliet", "ROMEO"),
    "JULIET": ("romeo_and_juliet", "JULIET"),
    "PROSPERO": ("tempest", "PROSPERO"),
    "OLIVIA": ("twelfth_night", "OLIVIA"),
    "VIOLA": ("twelfth_night", "VIOLA"),
    "TOBY": ("twelfth_night", "SIR TOBY"),
}
HEADING = re.compile(r"([A-Z][A-Za-z']*(?: [A-Z][A-Za-z]*)?)\.?")
DIRECTION = re.compile(r"\[[^\]]*\]")
SENTENCE = re.compile(r"(?:^|(?<=[.?!] )|(?<=[.?!]--))['A-Z][^.?!:\"()]*[.?!](?= |--|$)")
WORDS, LETTERS = (3, 12), 64
"""How long a line may be, so that a small model can learn to end it."""


@dataclass(frozen=True)
class Line:
    """A sentence that a character says."""

    speaker: str
    text: str

    @property
    def answer(self) -> str:
        """As the rule wants it."""
        return f"{self.speaker}: {self.text}"

    @property
    def asks(self) -> bool:
        """Whether it is a question."""
        return self.text.endswith("?")


def write_data(folder: Path) -> dict[str, int]:
    """Write `prompts` of each part, and `sft` of all but tests; return how many records each file has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, counts = read_lines(), {}
    for part in PARTS:
        prompts = prompts_of(part)
        asked = [{"messages": [said("user", text)]} for texts in prompts.values() for text in texts]
        counts |= write(folder / f"prompts-{part}.jsonl", asked)
        if part != "test":
            mine = [line for name in SPEAKERS for line in lines_of(part, lines[name])]
            rng = np.random.Generator(np.random.Philox(PARTS.index(part)))
            counts |= write(folder / f"sft-{part}.jsonl", conversations(mine, prompts, rng))
    return counts


def write(file: Path, records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Write records as JSON lines; return how many there are, by the file's name."""
    rows = [json.dumps(record) + "\n" for record in records]
    file.write_text("".join(rows), encoding="utf-8")
    return {file.stem: len(rows)}


def read_lines() -> dict[str, list[Line]]:
    """Return each speaker's short sentences, none twice, in the order of the play."""
    found: dict[str, dict[Line, None]] = {name: {} for name in SPEAKERS}
    names = {place: name for name, place in SPEAKERS.items()}
    for play in sorted({play for play, _ in SPEAKERS.values()}):
        for heading, text in speeches((PLAYS_FOLDER / f"{play}.txt").read_text(encoding="utf-8")):
            if (name := names.get((play, heading))) is not None:
                found[name] |= {Line(name, sentence): None for sentence in sentences(text)}
    return {name: list(lines) for name, lines in found.items()}


def speeches(play: str) -> Iterator[tuple[str, str]]:
    """Yield who speaks, in capitals, and what, in one line and without directions."""
    for block in play.split("\n\n"):
        first, _, rest = block.strip().partition("\n")
        if (heading := HEADING.fullmatch(first)) is not None and rest:
            yield heading[1].upper(), " ".join(DIRECTION.sub("", rest).split())


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a speech that are short enough."""
    for sentence in SENTENCE.findall(text):
        if WORDS[0] <= len(sentence.split()) <= WORDS[1] and len(sentence) <= LETTERS:
            yield sentence


def prompts_of(part: Part) -> dict[str, list[str]]:
    """Return each speaker's prompts: of 8 phrases one is for tests, one for validation, six for training.

    Which ones they are goes around with the speakers, so that every phrase has each of these roles.
    """
    found = {}
    for number, name in enumerate(SPEAKERS):
        test, val = number % len(PHRASES), (number + 3) % len(PHRASES)
        mine = {"test": [test], "val": [val], "train": [i for i in range(len(PHRASES)) if i not in (test, val)]}
        found[name] = [PHRASES[i].format(name) for i in mine[part]]
    return found


def lines_of(part: Literal["train", "val"], lines: list[Line]) -> list[Line]:
    """Return a part of a speaker's lines: of ten one is for validation, the others for training."""
    return [line for number, line in enumerate(lines) if (number % 10 == 5) == (part == "val")]


def conversations(
    lines: Iterable[Line], prompts: dict[str, list[str]], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield a conversation for each line: it is asked for, and said."""
    for line in lines:
        yield {"messages": [said("user", pick(prompts[line.speaker], rng)), said("assistant", line.answer)]}


def said(role: str, content: str) -> dict[str, str]:
    """Return a message."""
    return {"role": role, "content": content}


def pick(choices: list[Any], rng: np.random.Generator) -> Any:
    """Return one of them."""
    return choices[int(rng.integers(len(choices)))]
