"""Classification: labelled texts → a head on the last token → a table of what is taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxgpt import chat, objectives
from jaxgpt.commands import next_command, unused
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.flags import Name, PathName, flag
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import FILES, FineTune, FineTuneConfig


@dataclass(frozen=True)
class ClassifyConfig(FineTuneConfig):
    """Learning texts' labels."""

    out_dir: PathName = flag("out-classify", "the run's folder", on_resume="of the command", per_host=True)
    dataset: PathName | None = flag(
        None,
        f"texts with a label each: {FILES}; also .csv and .tsv",
        per_host=True,
    )
    text_column: Name = flag(
        "text", "the column with the text; where it is absent, sentence and the like", on_resume="fixed", group="data"
    )
    label_column: Name = flag(
        "label",
        "the column with the label, a text or, from 0, the number of one of the model's own labels",
        on_resume="fixed",
        group="data",
    )


class Classify(FineTune[ClassifyConfig]):
    """The label of a text, from its last token."""

    name = "classify"
    Flags = ClassifyConfig

    def open(self, folder: Path, record: Record | None) -> None:
        columns = {"text_column": self.flags.text_column, "label_column": self.flags.label_column}
        texts, val_texts = self.read(partial(chat.read_labelled, **columns))
        self.open_base(folder, record)
        own, count = self.config.labels or (), len(texts)
        if record is not None or len(chat.label_names((*texts, *val_texts))) == len(own):
            named = chat.name_labels([*texts, *val_texts], own)
            texts, val_texts = named[:count], named[count:]
        chat.note_odd_labels(texts, () if self.flags.val_dataset else val_texts)
        if record is None:
            # Where validation is a part of one file, a label may have come there alone.
            names = chat.label_names(texts if self.flags.val_dataset else (*texts, *val_texts))
            if len(names) < 2:
                raise UsageError(f"--dataset {self.flags.dataset}: all texts have one label, {texts[0].label!r}")
            self.add_labels(names)
        labels = self.config.labels
        assert labels is not None
        too_long = self.flags.too_long
        encoded = {
            part: chat.encode_labelled(records, self.tokenizer, labels=labels, length=self.room, too_long=too_long)
            for part, records in (("train", texts), ("val", val_texts))
        }
        self.examples = encoded
        train, val = encoded["train"], encoded["val"]
        balance = Counter(one.label for one in train)
        shares = ", ".join(f"{label} {balance[number] / len(train):.0%}" for number, label in enumerate(labels))
        sizes = f"{len(train):,} texts to train on ({shares}), {len(val):,} to validate on"
        # Of one length, so that one program serves all; what stands behind a text does not matter.
        self.length = max(len(one.ids) for one in (*train, *val))
        self.finish_opening([f"data:  {self.flags.dataset}, {sizes};", f"       of up to {self.length} tokens"])

    def make_objective(self, model: Any) -> objectives.Objective:
        return objectives.classify(model)

    def lay_out(self, part: str, rows: Any) -> chat.Labelled:
        return chat.labelled_batch(self.examples[part], rows, length=self.length, pad_id=0)

    def excerpt(self) -> Sequence[int]:
        return self.examples["val"][0].ids

    def show(self, folder: Path, params: Any) -> None:
        """Print which labels were taken for which."""
        batches = (self.lay_out("val", rows) for rows in self.rows_in_order("val"))
        predicted = objectives.predict(self.build_model(), self.best_params(folder, params), batches)
        if is_first():
            truth = [one.label for one in self.examples["val"]]
            print("\nvalidation texts, by label (rows) and by what they are taken for (columns):")
            print(objectives.confusion(self.config.labels or (), truth, predicted))
        show_curve(folder, next_command("convert", folder, unused(f"{folder}-for-pytorch")))
