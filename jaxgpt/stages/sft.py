"""Supervised fine-tuning: conversations → the assistant's tokens as the objective → answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt import chat, data, model, objectives
from jaxgpt.commands import next_command
from jaxgpt.flags import PathName, flag
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import FILES, SHOWN_PROMPTS, FineTune, FineTuneConfig
from jaxgpt.train.config import SampleConfig


@dataclass(frozen=True)
class SFTConfig(SampleConfig, FineTuneConfig):
    """Learning to answer from conversations (Ouyang et al. 2022, section 3.5)."""

    out_dir: PathName = flag("out-sft", "the run's folder", on_resume="of the command", per_host=True)
    dataset: PathName | None = flag(None, f"conversations, of messages or in Alpaca's fields: {FILES}", per_host=True)
    template: PathName | None = flag(
        None, "a chat template in Jinja; none: the model's own, or ours", on_resume="fixed", per_host=True, group="data"
    )
    packing: bool = flag(
        True, "lay several conversations into a row, none seeing another", on_resume="fixed", group="data"
    )


class SFT(FineTune[SFTConfig]):
    """The assistant's tokens in conversations, and the end of its turns.

    Attributes:
        conversations: in tokens, by part; `rows` are laid out of them.
    """

    name = "sft"
    per_token = True
    Flags = SFTConfig

    def open(self, folder: Path, record: Record | None) -> None:
        self.open_base(folder, record)
        self.remove_labels()
        if record is None:
            self._add_template()
        template = self.template
        assert template is not None
        how = {"length": self.room, "too_long": self.flags.too_long}
        self.conversations = {
            part: chat.encode_conversations(records, self.tokenizer, template, **how)
            for part, records in zip(("train", "val"), self.read(chat.read_conversations), strict=True)
        }
        longest = max(len(one.ids) for part in self.conversations.values() for one in part)
        length = self.room if self.flags.packing else longest - 1  # the last token is only a target
        self.rows = {
            part: chat.conversation_rows(one, length=length, packing=self.flags.packing)
            for part, one in self.conversations.items()
        }
        self.examples = {part: batch.tokens for part, batch in self.rows.items()}
        counts = [f"{len(part):,}" for part in self.conversations.values()]
        rows = [f"{len(part):,}" for part in self.examples.values()]
        self.finish_opening([
            f"data:  {self.flags.dataset}, {counts[0]} conversations to train on, {counts[1]} to validate on;",
            f"       in {rows[0]} and {rows[1]} rows of {length} tokens",
        ])  # fmt: skip

    def _add_template(self) -> None:
        """Give the model a chat template, the template's tokens, and an end of turn that ends a generation."""
        if self.flags.template is not None:
            template = chat.ChatTemplate.read(self.flags.template)
        else:
            template = self.template or chat.DEFAULT_TEMPLATE
        self.tokenizer = chat.add_template(self.tokenizer, template)
        size, key = self.tokenizer.vocab_size, model.key_of(self.flags.seed, "vocabulary")
        self.config, self.params = model.extend_vocabulary(self.config, self.params, size, key)
        ends = tuple(dict.fromkeys((template.stop_id(self.tokenizer), *self.config.eos_token_ids)))
        self.config = replace(self.config, eos_token_id=ends)

    def make_objective(self, model: Any) -> objectives.Objective:
        return objectives.pretrain(model)

    def lay_out(self, part: str, rows: Any) -> data.Batch:
        return chat.take_rows(self.rows[part], rows)

    def excerpt(self) -> Sequence[int]:
        return self.conversations["val"][0].ids

    @property
    def shown_prompts(self) -> list[tuple[int, ...]]:
        # Of different beginnings: many conversations may have the same.
        begun = [one.ids[: one.turns()[0][0]] for one in self.conversations["val"]]
        return [ids for ids in dict.fromkeys(begun) if ids][:SHOWN_PROMPTS]

    def show(self, folder: Path, params: Any) -> None:
        """Print some answers."""
        self.show_answers(folder, params)
        _, records = self.read(chat.read_conversations)
        questions = [message.content for one in records for message in one.messages if message.role == "user"]
        start = ["--start", min(questions, key=len)] if questions else []
        show_curve(folder, next_command("generate", "--init_from", folder, *start))
