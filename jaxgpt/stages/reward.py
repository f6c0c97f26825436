"""A reward model: pairs of answers → a score that is higher for the better one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import objectives
from jaxgpt.chat.records import TooLong
from jaxgpt.commands import next_command, unused
from jaxgpt.flags import PathName, Positive, Rate, flag
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import FineTuneConfig
from jaxgpt.stages.pairs import PAIR_FILE, FromPairs

LABEL = ("reward",)


@dataclass(frozen=True)
class RewardConfig(FineTuneConfig):
    """Learning which of two answers is the better one."""

    out_dir: PathName = flag("out-reward", "the run's folder", on_resume="of the command", per_host=True)
    dataset: PathName | None = flag(None, PAIR_FILE, per_host=True)
    too_long: TooLong = flag(
        "drop",
        "what becomes of a pair beyond block_size, counted at the start: left out, as TRL does, for the score of an "
        "answer stands at its end; cut (the prompt at its beginning, then the answers at their ends); or an error",
        on_resume="fixed",
    )
    dropout: Rate | None = flag(0.0, "all three dropout rates; none: the model's own, but 0 of attention weights")
    centring: Positive | None = flag(
        None, "coefficient that holds rewards around 0, such as 0.01; none: nothing does", group="objective"
    )


class Reward(FromPairs[RewardConfig]):
    """A score at an answer's last token, higher for the chosen one."""

    name = "reward"
    Flags = RewardConfig

    def open(self, folder: Path, record: Record | None) -> None:
        self.open_base(folder, record)
        if record is None:
            self.add_labels(LABEL)
        self.open_pairs()

    def make_objective(self, model: Any) -> objectives.Objective:
        return objectives.reward(model, centring=self.flags.centring)

    def show(self, folder: Path, params: Any) -> None:
        """Draw the curve."""
        if self.prompts_file is None:
            show_curve(folder, next_command("convert", folder, unused(f"{folder}-for-pytorch")))
            return
        words = "--init_from", self.source, "--reward_model", folder, "--dataset", self.prompts_file
        show_curve(folder, next_command("train", "ppo", *words, "--out_dir", unused("out-ppo")))
