"""The SFT model's own answers → pairs of which the rule says which one is better, as people would be asked to say.

Answers that the model might give are what a reward model has to judge later. They alone do not keep DPO from ending in
gibberish: with beta 0.1 and a learning rate of 1e-4 it did so on these pairs, as it had on lines out of the plays; the
settings in `commands` are what helped, and were not tried on such lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from recipes.align.data import PARTS, Part, said, write
from recipes.align.evaluate import Answers, answers
from recipes.align.rules import END, score, well_formed

SEEDS: dict[Part, int] = {"train": 101, "val": 102, "test": 103}
STATEMENT, ILL_FORMED = "a statement", "not well-formed"
"""What is wrong with the rejected answer of a pair."""


def write_pairs(run: Path, data: Path) -> dict[str, int]:
    """Write `pairs` of each part as JSON lines, from a model's answers to the part's prompts.

    Answers that are to be trained on are in no other part.

    Args:
        run: the SFT model's folder.
        data: the folder with the prompts, and for the pairs.

    Returns:
        How many records each file has.
    """
    counts: dict[str, int] = {}
    seen: set[str] = set()
    for part in PARTS:
        given = answers(run, data / f"prompts-{part}.jsonl", seed=SEEDS[part])
        records = [one for one in pairs(given) if part == "train" or not seen & {one["chosen"], one["rejected"]}]
        seen |= {one[answer] for one in records for answer in ("chosen", "rejected")}
        counts |= write(data / f"pairs-{part}.jsonl", records)
    return counts


def pairs(given: Answers) -> Iterator[dict[str, Any]]:
    """Yield pairs of answers to one prompt: each question over a statement, and one over what is not well-formed.

    Answers that did not end are left out, as a pair's answers do.
    """
    for prompt, texts in zip(given.prompts, given.texts, strict=True):
        ended = [text for text in dict.fromkeys(texts) if text.removesuffix(END).strip() and text.endswith(END)]
        questions = [text for text in ended if score(prompt, text)]
        statements = [text for text in ended if well_formed(prompt, text) and not score(prompt, text)]
        others = [text for text in ended if not well_formed(prompt, text)]
        if not questions:
            continue
        kinds = ((STATEMENT, zip(questions, statements, strict=False)), (ILL_FORMED, zip(cycle(questions), others)))
        for kind, both in kinds:
            for chosen, rejected in both:
                yield {
                    "prompt": [said("user", prompt)],
                    "chosen": chosen.removesuffix(END),
                    "rejected": rejected.removesuffix(END),
                    "kind": kind,
                }
