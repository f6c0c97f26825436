"""Classification: labelled texts → a head on the last token → a table of what is taken for what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.cli.run import Job, Record, next_command
from jaxgpt.cli.stage import Examples, job, model_of, open_start, read_examples, room, show_curve, task, with_labels
from jaxgpt.errors import UsageError
from jaxgpt.text.encoded import encode_labelled, label_names
from jaxgpt.text.examples import labelled_batch
from jaxgpt.text.records import read_labelled
from jaxgpt.train.classification import classify, confusion, predict
from jaxgpt.train.stages import ClassifyConfig


def prepare(flags: ClassifyConfig, folder: Path, record: Record | None) -> Job:
    """Open the model and the texts."""
    texts, val_texts = read_examples(flags, read_labelled)
    start = open_start(flags, folder, record)
    if record is None:
        # Where validation is a part of one file, a label may have come there alone.
        names = label_names(texts if flags.val_dataset else (*texts, *val_texts))
        if len(names) < 2:
            raise UsageError(f"--dataset {flags.dataset}: all texts have one label, {texts[0].label!r}")
        start = with_labels(start, names, seed=flags.seed)
    labels = start.config.labels
    assert labels is not None
    model = model_of(flags, start.config)
    limit = room(flags, start.config)
    train, val = (encode_labelled(part, start.tokenizer, labels=labels, length=limit) for part in (texts, val_texts))
    # Of one length, so that one program serves all; what stands behind a text does not matter.
    layout = {"length": max(len(text.ids) for text in (*train, *val)), "pad_id": 0}
    examples = Examples(
        sizes=(len(train), len(val)),
        batches=(
            lambda rows: labelled_batch(train, rows, **layout),
            lambda rows: labelled_batch(val, rows, **layout),
        ),
    )

    def show(params: Any) -> None:
        predicted = predict(model, params, examples.in_order(1, flags.batch_size))
        if jax.process_index() == 0:
            print("\nvalidation texts, by label (rows) and by what they are taken for (columns):")
            print(confusion(labels, np.array([text.label for text in val]), predicted))
        show_curve(folder, next_command("convert_weights", folder, f"{folder}-for-pytorch"))

    balance = Counter(text.label for text in texts)
    shares = ", ".join(f"{label} {balance[label] / len(texts):.0%}" for label in labels)
    return job(
        flags,
        start,
        about=[
            f"data:  {flags.dataset}, {len(train):,} texts to train on ({shares}), {len(val):,} to validate on;",
            f"       of up to {layout['length']} tokens",
        ],
        task=lambda mesh: task(flags, start, examples, classify, mesh),
        show=show,
    )
