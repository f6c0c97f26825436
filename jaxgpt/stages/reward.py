"""A reward model: pairs of answers → a score that is higher for the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt import chat, objectives
from jaxgpt.chat.fitting import TooLong
from jaxgpt.commands import next_command
from jaxgpt.flags import PathName, Positive, Rate, flag
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import FILES, FineTune, FineTuneConfig, FineTuneFlags

LABEL = ("reward",)
PAIR_FILE = f"pairs, of prompt, chosen and rejected: {FILES}"


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


class FromPairs(FineTune[FineTuneFlags]):
    """The base of the two stages that learn from pairs of answers.

    Attributes:
        length: T of a row, an answer behind its prompt.
    """

    length: int

    def open_pairs(self) -> None:
        """Read the pairs."""
        too_long = self.flags.too_long
        self.examples = {
            part: chat.encode_pairs(records, self.tokenizer, self.template, length=self.room, too_long=too_long)
            for part, records in zip(("train", "val"), self.read(chat.read_pairs), strict=True)
        }
        pairs = [pair for part in self.examples.values() for pair in part]
        self.length = max(len(answer.ids) for pair in pairs for answer in (pair.chosen, pair.rejected))
        sizes = f"{len(self.examples['train']):,} pairs to train on, {len(self.examples['val']):,} to validate on"
        self.finish_opening([
            f"data:  {self.flags.dataset}, {sizes};",
            f"       with their prompts of up to {self.length} tokens",
        ])  # fmt: skip

    def lay_out(self, part: str, rows: Any) -> chat.Pairs:
        return chat.pairs_batch(self.examples[part], rows, length=self.length, pad_id=0)

    def excerpt(self) -> Sequence[int]:
        return self.examples["val"][0].chosen.ids


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
        show_curve(folder, next_command("train", "ppo", "--reward_model", folder, "--dataset", "PROMPTS"))
