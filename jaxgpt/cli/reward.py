"""A reward model: pairs of answers → a score that is higher for the better one."""

from __future__ import annotations

from pathlib import Path

from jaxgpt.cli.pairs import open_pairs
from jaxgpt.cli.run import Job, Record, next_command
from jaxgpt.cli.stage import job, open_start, show_curve, task, with_labels
from jaxgpt.train.preferences import reward
from jaxgpt.train.stages import RewardConfig

LABEL = ("reward",)


def prepare(flags: RewardConfig, folder: Path, record: Record | None) -> Job:
    """Open the model and the pairs."""
    start = with_labels(open_start(flags, folder, record), LABEL, seed=flags.seed)
    pairs = open_pairs(flags, start)
    examples = pairs.examples()
    after = next_command("train", "ppo", "--reward_model", folder, "--dataset", "PROMPTS")
    return job(
        flags,
        start,
        about=pairs.about(flags),
        task=lambda mesh: task(flags, start, examples, lambda model: reward(model, centring=flags.centring), mesh),
        show=lambda params: show_curve(folder, after),
    )
