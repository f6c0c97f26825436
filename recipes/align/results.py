"""All that is measured at the end, and the bars that it has to clear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.align.commands import FREE, HELD, Stage, checkpoints
from recipes.align.evaluate import Answers, accuracies, answers

FORMAT_BEFORE, FORMAT_AFTER = 0.05, 0.90
PREFERENCE = 0.90
WINS = 0.75
KL = 8.0
"""Nats for an answer: how far a policy may be from the SFT model, measured on the policy's own answers."""
DEGENERATE, HELD_FORMAT = 0.50, 0.85
"""Well-formed answers under a flawed reward: below the first without a KL coefficient, above the second with one."""

MODELS = ("base", "sft", "dpo", "ppo")


@dataclass(frozen=True)
class Results:
    """What came of the runs, on held-out prompts and pairs.

    Attributes:
        models: each model's answers, by the names of `MODELS`.
        pairs: for each kind of pair, how many the reward model gets right, and of how many.
        hacking: of the two runs with a flawed reward, the answers by iteration; iteration 0 is the SFT model.
    """

    models: Mapping[str, Answers]
    pairs: Mapping[str, tuple[int, int]]
    hacking: Mapping[str, Mapping[int, Answers]]

    @property
    def sft(self) -> Answers:
        """The model that others are measured against."""
        return self.models["sft"]

    @property
    def preference(self) -> float:
        """The reward model's accuracy over all kinds of pairs."""
        right, total = map(sum, zip(*self.pairs.values(), strict=True))
        return right / total


@dataclass(frozen=True)
class Bar:
    """One thing that must have come out: what, what was measured, what is asked, and whether it did."""

    what: str
    measured: str
    asked: str
    passed: bool


def measure(folder: Path, runs: Mapping[str, Stage]) -> Results:
    """Ask the models of all runs the same prompts."""
    prompts, sft = folder / "data" / "prompts-test.jsonl", folder / "sft"
    models = {
        name: answers(folder / name, prompts, reference=sft if name in ("dpo", "ppo") else None, seed=seed)
        for seed, name in enumerate(MODELS)
    }
    hacking = {
        name: {
            0: models["sft"],
            **{
                step: answers(folder / name, prompts, reference=sft, which=step, seed=len(MODELS))
                for step in checkpoints(runs[name])
            },
        }
        for name in (HELD, FREE)
    }
    return Results(models, accuracies(folder / "reward", folder / "data" / "pairs-test.jsonl"), hacking)


def bars(results: Results) -> list[Bar]:
    """Hold what was measured against the bars."""
    base, sft = results.models["base"], results.sft
    found = [
        _bar("well-formed answers before SFT", base.format, below=FORMAT_BEFORE),
        _bar("well-formed answers after SFT", sft.format, above=FORMAT_AFTER),
        _bar("pairs that the reward model gets right", results.preference, above=PREFERENCE),
    ]
    for name in ("dpo", "ppo"):
        model = results.models[name]
        assert model.kl is not None
        found.append(_bar(f"{name.upper()}'s win rate over SFT", model.wins(sft), above=WINS))
        found.append(Bar(f"{name.upper()}'s divergence from SFT", f"{model.kl:.2f} nats", f"< {KL}", model.kl < KL))
    held, free = (list(results.hacking[name].values())[-1] for name in (HELD, FREE))
    found.append(_bar("well-formed under a flawed reward, KL coefficient on", held.format, above=HELD_FORMAT))
    found.append(_bar("well-formed under a flawed reward, KL coefficient 0", free.format, below=DEGENERATE))
    return found


def _bar(what: str, measured: float, *, above: float | None = None, below: float | None = None) -> Bar:
    asked = [f"≥ {above:.0%}"] if above is not None else []
    asked += [f"< {below:.0%}"] if below is not None else []
    passed = (above is None or measured >= above) and (below is None or measured < below)
    return Bar(what, f"{measured:.1%}", ", ".join(asked), passed)
