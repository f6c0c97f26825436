"""Files of what post-training learns from come in: labelled texts, conversations, pairs of answers; batches go out.

`reading` makes records of a file, `template` and `encoded` ids of those, `examples` draws batches from them. Nothing
here but `examples` waits for JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.chat.encoded import (
        EncodedPair,
        LabelledIds,
        encode_conversations,
        encode_labelled,
        encode_pairs,
        encode_prompts,
    )
    from jaxgpt.chat.examples import (
        Labelled,
        Pairs,
        conversation_rows,
        epoch_rows,
        eval_rows,
        eval_sample,
        labelled_batch,
        pairs_batch,
        take_rows,
    )
    from jaxgpt.chat.files import ExampleFiles, find_files, fingerprint
    from jaxgpt.chat.labels import label_names, name_labels, note_odd_labels
    from jaxgpt.chat.reading import read_conversations, read_labelled, read_pairs, read_prompts
    from jaxgpt.chat.records import Prompt, split
    from jaxgpt.chat.template import DEFAULT_TEMPLATE, ChatTemplate, add_template

__all__ = [
    "ChatTemplate",
    "DEFAULT_TEMPLATE",
    "EncodedPair",
    "ExampleFiles",
    "Labelled",
    "LabelledIds",
    "Pairs",
    "Prompt",
    "add_template",
    "conversation_rows",
    "encode_conversations",
    "encode_labelled",
    "encode_pairs",
    "encode_prompts",
    "epoch_rows",
    "eval_rows",
    "eval_sample",
    "find_files",
    "fingerprint",
    "label_names",
    "labelled_batch",
    "name_labels",
    "note_odd_labels",
    "pairs_batch",
    "read_conversations",
    "read_labelled",
    "read_pairs",
    "read_prompts",
    "split",
    "take_rows",
]
__getattr__, __dir__ = on_first_use(__name__)
