"""The rules: what an answer must look like, which of two is the better one; and a flawed reward.

Only the standard library: `train.py ppo --reward_function recipes/align/rules.py:question_words` reads this file alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END = "<|end|>"
LINE = re.compile(r"([A-Z]+): ['A-Z][^.?!:\n]*[.?!]")
ASKED = re.compile(r"\b[A-Z]{2,}\b")
QUESTION_WORDS = re.compile(r"\b(?:what|who|why|how|where|when|which)\b", re.IGNORECASE)

Scores = Sequence[Sequence[float]]
"""Prompt by prompt, the scores of the answers to it."""


def speaker(prompt: str) -> str:
    """Return the name that a prompt asks for: its word in capitals."""
    found = ASKED.search(prompt)
    if found is None:
        raise ValueError(f"no name in capitals: {prompt!r}")
    return found[0]


def well_formed(prompt: str, answer: str) -> bool:
    """Return whether an answer is `NAME: one sentence.`, of whom it was asked, and ends its turn.

    Args:
        prompt: the user's text.
        answer: the model's text, with the token that ends the turn if there is one.
    """
    line = LINE.fullmatch(answer.removesuffix(END))
    return answer.endswith(END) and line is not None and line[1] == speaker(prompt)


def score(prompt: str, answer: str) -> float:
    """Return 1 for an answer that is well-formed and a question, else 0."""
    return float(well_formed(prompt, answer) and answer.endswith(f"?{END}"))


def win_rate(ours: Scores, theirs: Scores) -> float:
    """Return how often one of our answers beats one of theirs to the same prompt; a tie counts half.

    Every answer meets every other one to the same prompt, and prompts weigh the same.
    """
    rates = [
        sum((mine > other) + (mine == other) / 2 for mine in some for other in others) / (len(some) * len(others))
        for some, others in zip(ours, theirs, strict=True)
    ]
    return sum(rates) / len(rates)


def distinct_words(answer: str) -> float:
    """Return how many different words an answer has, as a part of its words; 1 for an empty one."""
    words = re.findall(r"[\w']+", answer.removesuffix(END).lower())
    return len(set(words)) / len(words) if words else 1.0


def question_words(prompts: list[str], answers: list[str]) -> list[float]:
    """Count words that questions often have: a flawed stand-in for the rule, which a policy can fool."""
    return [float(len(QUESTION_WORDS.findall(answer))) for answer in answers]
