"""Supervised fine-tuning: conversations → the assistant's tokens as the objective → answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.cli.run import Job, Record, next_command
from jaxgpt.cli.stage import (
    SHOWN,
    Examples,
    Start,
    job,
    key_of,
    open_start,
    read_examples,
    room,
    show_answers,
    show_curve,
    task,
    without_labels,
)
from jaxgpt.model.resize import extend_vocabulary
from jaxgpt.text.batches import Batch
from jaxgpt.text.chat import DEFAULT, ChatTemplate, Encoded, add_template
from jaxgpt.text.encoded import encode_conversations
from jaxgpt.text.examples import conversation_batch, packed_conversations, take_rows
from jaxgpt.text.records import read_conversations
from jaxgpt.train.objectives import pretrain
from jaxgpt.train.stages import SFTConfig


def prepare(flags: SFTConfig, folder: Path, record: Record | None) -> Job:
    """Open the model, give it a chat template, and open the conversations."""
    start = without_labels(open_start(flags, folder, record, fixed=("template", "packing")))
    if record is None:
        start = with_template(start, flags)
    template = start.template
    assert template is not None
    conversations, val_conversations = read_examples(flags, read_conversations)
    limit = room(flags, start.config)
    train, val = (
        encode_conversations(part, start.tokenizer, template, length=limit)
        for part in (conversations, val_conversations)
    )
    longest = max(len(one.ids) for part in (train, val) for one in part.conversations)
    length = limit if flags.packing else longest - 1  # the last token is only a target
    rows, val_rows = (lay_out(part.conversations, length=length, packing=flags.packing) for part in (train, val))
    # Of different beginnings: many conversations may have the same.
    begun = [one.ids[: one.turns()[0][0]] for one in val.conversations]
    prompts = [ids for ids in dict.fromkeys(begun) if ids][:SHOWN]
    examples = Examples(
        sizes=(len(rows.tokens), len(val_rows.tokens)),
        batches=(partial(take_rows, rows), partial(take_rows, val_rows)),
    )

    def show(params: Any) -> None:
        show_answers(flags, folder, start, prompts, params)
        show_curve(folder, next_command("generate", "--init_from", folder, "--start", "QUESTION"))

    counts = [f"{len(part.conversations):,}" for part in (train, val)]
    cut, dropped = train.cut + val.cut, train.dropped + val.dropped
    return job(
        flags,
        start,
        about=[
            f"data:  {flags.dataset}, {counts[0]} conversations to train on, {counts[1]} to validate on;",
            f"       in {len(rows.tokens):,} and {len(val_rows.tokens):,} rows of {length} tokens",
            *([f"note: {cut} were too long and end with the last answer that fits"] if cut else []),
            *([f"note: {dropped} are left out, as not even their first answer fits"] if dropped else []),
        ],
        task=lambda mesh: task(flags, start, examples, pretrain, mesh),
        show=show,
    )


def with_template(start: Start, flags: SFTConfig) -> Start:
    """Return the model with a chat template, the template's tokens, and an end of turn that ends a generation."""
    if flags.template is not None:
        template = ChatTemplate.read(flags.template)
    else:
        template = start.template or DEFAULT
    tokenizer = add_template(start.tokenizer, template)
    key = key_of(flags.seed, "vocabulary")
    config, params = extend_vocabulary(start.config, start.params, tokenizer.vocab_size, key)
    ends = tuple(dict.fromkeys((template.stop_id(tokenizer), *start.config.eos_token_ids)))
    return Start(start.name, replace(config, eos_token_id=ends), tokenizer, params)


def lay_out(conversations: Sequence[Encoded], *, length: int, packing: bool) -> Batch:
    """Return all rows, of `length`."""
    if packing:
        return packed_conversations(conversations, length=length, pad_id=0)
    return conversation_batch(conversations, np.arange(len(conversations)), length=length, pad_id=0)
