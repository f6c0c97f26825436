"""What reward models and DPO share: pairs of answers, read and laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxgpt import chat
from jaxgpt.stages.finetune import FILES, FineTune, FineTuneFlags

PAIR_FILE = f"pairs, of prompt, chosen and rejected: {FILES}"


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
