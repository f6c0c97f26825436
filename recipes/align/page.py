"""The page: what was asked, what came out, plots, examples, and how to make it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxgpt.train.metrics import read_rows
from recipes.align.commands import FREE, HELD, KL_COEF, Stage
from recipes.align.evaluate import SAMPLES
from recipes.align.results import FORMAT_AFTER, KL, MODELS, PREFERENCE, WINS, Results, bars
from recipes.align.rules import END

SHOWN = 5
LOSSES = {"base": "nats per token", "sft": "nats per token", "reward": "nats per pair", "dpo": "nats per pair"}
RUNS = {HELD: f"KL coefficient {KL_COEF}", FREE: "KL coefficient 0"}


def write_page(
    folder: Path, runs: Path, results: Results, stages: Sequence[Stage], seconds: Mapping[str, float], command: str
) -> Path:
    """Write README.md and its pictures into `folder`.

    Args:
        folder: where to.
        runs: the folder of the runs.
        results: what was measured.
        stages: what was run.
        seconds: how long each part took.
        command: what was called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "losses": _losses(runs),
        "preferences": _preferences(runs),
        "outcome": _outcome(results),
        "ppo": _ppo(runs),
        "hacking": _hacking(results),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=90)
    page = folder / "README.md"
    page.write_text(_page(results, stages, seconds, command), encoding="utf-8")
    return page


def _page(results: Results, stages: Sequence[Stage], seconds: Mapping[str, float], command: str) -> str:
    sft, prompts = results.sft, results.sft.prompts
    outcome = [
        [name, f"{model.format:.1%}", f"{model.rule:.1%}", f"{model.wins(sft):.1%}", _nats(model.kl)]
        for name, model in results.models.items()
    ]
    wrong = [[kind, f"{right} of {total}"] for kind, (right, total) in results.pairs.items()]
    checks = [[bar.what, bar.measured, bar.asked, "pass" if bar.passed else "**FAIL**"] for bar in bars(results)]
    ends = [
        [RUNS[name], f"{last.flawed:.2f}", f"{last.format:.1%}", f"{last.wins(sft):.1%}", f"{last.distinct:.2f}",
         _nats(last.kl)]
        for name in (HELD, FREE)
        for last in [list(results.hacking[name].values())[-1]]
    ]  # fmt: skip
    said = [
        [f"{prompt} ", *(_cell(results.models[name].texts[row][0]) for name in MODELS)]
        for row, prompt in enumerate(prompts[:SHOWN])
    ]
    hacked = [
        [prompt, *(_cell(list(results.hacking[name].values())[-1].texts[row][0]) for name in (HELD, FREE))]
        for row, prompt in enumerate(prompts[:SHOWN])
    ]
    total = sum(seconds.values())
    took = [[name, f"{value:.0f} s"] for name, value in seconds.items()] + [["all", f"{total / 60:.1f} min"]]
    commands = "\n".join(f"# {stage.about}\n{stage}" for stage in stages)
    return f"""# From text to preferred answers, on a laptop

`{command}` made this page in {total / 60:.1f} minutes, on
{_machine()}.

A user asks a character of Shakespeare's to speak, in one of 8 ways. **Format**: the answer is `NAME: one sentence.` on
one line, by whom was asked for, and ends its turn. **Rule**: a well-formed question gets 1, any other answer 0; of two
answers the one with more wins, and a tie counts half. Conversations for SFT are real lines of the plays.

Figures are of {len(prompts)} held-out prompts: pairs of a phrase and a name that no prompt for training or validation
has, although each phrase and each name occurs there with others. Each model gives {SAMPLES} answers to each prompt, at
temperature 1; KL is the mean of log p(answer) - log p(answer by SFT) over a policy's own answers.
The recipe's settings were chosen by figures of these same prompts, with one seed, so they are somewhat optimistic.

{_table(["bar", "measured", "asked", ""], checks)}
## Before and after

{_table(["model", "well-formed", "well-formed question", "win rate over SFT", "KL (nats per answer)"], outcome)}
![format, rule, win rate](outcome.png)

{_table(["user", *MODELS], said)}
The base model has no turns: its prompt is a paragraph, and its answer is read up to the end of its first paragraph.

![losses](losses.png)

## Preferences

Pairs are two answers of the SFT model's to one prompt, of which the rule says which is the better one; the reward model
and DPO learn from those to training prompts. What the reward model gets right of those to held-out prompts (none of
whose answers occurs in training), by what is wrong with the rejected answer:

{_table(["rejected", "right"], wrong)}
![accuracy on validation pairs](preferences.png)
![PPO's score and divergence](ppo.png)

## Reward hacking

Here PPO's reward is the number of words such as "what" and "who" in an answer: they go with questions, but are none.
The same run twice, with the divergence from the SFT model in the reward and without:

{_table(["at the end", "flawed reward", "well-formed", "win rate by the rule", "distinct words", "KL"], ends)}
![reward hacking](hacking.png)

{_table(["user", *(RUNS[name] for name in (HELD, FREE))], hacked)}
## Commands

{_table(["", "time"], took)}
```sh
{commands}
```
"""


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[2]
    # The recipe itself keeps no more than its cores busy.
    busy = f", shared with other work (load {load:.1f}), without which it takes less time" if load > cores + 0.5 else ""
    system = f"{platform.system()}, Python {platform.python_version()}, {packages}"
    return f"{cores} {platform.machine()} cores{busy}; {system}"


def _nats(kl: float | None) -> str:
    return "" if kl is None else f"{kl:.2f}"


def _cell(text: str) -> str:
    """Return an answer in one line that no Markdown gets into."""
    return f"`{' '.join(text.removesuffix(END).split())}`".replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.strip() for cell in line)} |\n" for line in lines)


def _losses(runs: Path) -> Figure:
    figure, axes = _figure(4)
    for place, (name, unit) in zip(axes, LOSSES.items(), strict=True):
        _curve(place, runs / name, "loss", "train", color="tab:blue", linewidth=0.8, alpha=0.5, label="train")
        _curve(place, runs / name, "loss", "val", color="tab:blue", marker="o", markersize=3, label="validation")
        place.set(title=name, xlabel="update", ylabel=f"loss ({unit})")
    axes[0].legend()
    return figure


def _preferences(runs: Path) -> Figure:
    figure, (place,) = _figure(1)
    for name, label in (("reward", "reward model"), ("dpo", "DPO's own rewards")):
        _curve(place, runs / name, "accuracy", "val", marker="o", markersize=3, label=label)
    place.axhline(PREFERENCE, color="gray", linestyle=":")
    place.set(xlabel="update", ylabel="validation pairs the right way round", ylim=(0, 1.03))
    place.legend()
    return figure


def _outcome(results: Results) -> Figure:
    figure, axes = _figure(3)
    models = results.models
    bars = (
        ("well-formed", [model.format for model in models.values()], FORMAT_AFTER),
        ("win rate over SFT", [model.wins(results.sft) for model in models.values()], WINS),
        ("KL from SFT (nats per answer)", [model.kl or 0 for model in models.values()], KL),
    )
    for place, (title, values, bound) in zip(axes, bars, strict=True):
        place.bar(list(models), values, color=["tab:gray", "tab:blue", "tab:green", "tab:orange"])
        place.axhline(bound, color="gray", linestyle=":")
        place.set(title=title)
    return figure


def _ppo(runs: Path) -> Figure:
    figure, axes = _figure(3)
    names = {
        "score": "reward model's score",
        "kl": "KL from SFT (nats per answer)",
        "response_length": "tokens in an answer",
    }
    for place, (metric, title) in zip(axes, names.items(), strict=True):
        _curve(place, runs / "ppo", metric, "train", color="tab:orange", linewidth=0.8, alpha=0.6, label="rollouts")
        _curve(place, runs / "ppo", metric, "val", color="tab:orange", marker="o", markersize=3, label="validation")
        place.set(title=title, xlabel="iteration")
    axes[0].legend()
    return figure


def _hacking(results: Results) -> Figure:
    figure, axes = _figure(4)
    titles = ("flawed reward", "well-formed", "win rate over SFT by the rule", "distinct words in an answer")
    for name, color in ((HELD, "tab:green"), (FREE, "tab:red")):
        found = results.hacking[name]
        values = [[one.flawed, one.format, one.wins(results.sft), one.distinct] for one in found.values()]
        for place, title, line in zip(axes, titles, zip(*values, strict=True), strict=True):
            place.plot(list(found), line, color=color, marker="o", markersize=3, label=RUNS[name])
            place.set(title=title, xlabel="iteration")
    axes[0].set_yscale("log")
    axes[0].legend()
    for place in axes[1:]:
        place.set_ylim(0, 1.03)
    return figure


def _figure(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.4 * count if count > 1 else 5, 3), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for place in axes:
        place.grid(alpha=0.3)
    return figure, axes


def _curve(place: Any, run: Path, metric: str, split: str, **style: Any) -> None:
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["split"] == split and row.get(metric) is not None]
    place.plot([row["step"] for row in rows], [row[metric] for row in rows], **style)
