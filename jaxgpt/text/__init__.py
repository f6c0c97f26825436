"""Text comes in; token ids, token files and batches go out.

Nothing here but `batches` and `examples` waits for JAX. A tokenizer is opened by name or folder, a corpus by name or
path, and what post-training reads (`records`) by path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.text.batches import Batch, eval_batch, random_batch
    from jaxgpt.text.bpe import BPE
    from jaxgpt.text.chat import DEFAULT_TEMPLATE, ChatTemplate, add_template
    from jaxgpt.text.corpus import Corpus, load_corpus
    from jaxgpt.text.encoded import (
        EncodedPair,
        LabelledIds,
        encode_conversations,
        encode_labelled,
        encode_pairs,
        encode_prompts,
        label_names,
    )
    from jaxgpt.text.examples import (
        Labelled,
        Pairs,
        conversation_rows,
        epoch_rows,
        eval_rows,
        labelled_batch,
        pairs_batch,
        take_rows,
    )
    from jaxgpt.text.records import Prompt, read_conversations, read_labelled, read_pairs, read_prompts, split
    from jaxgpt.text.token_files import TokenFile
    from jaxgpt.text.tokenizers import BPETokenizer, CharTokenizer, StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "BPE",
    "BPETokenizer",
    "Batch",
    "CharTokenizer",
    "ChatTemplate",
    "Corpus",
    "DEFAULT_TEMPLATE",
    "EncodedPair",
    "Labelled",
    "LabelledIds",
    "Pairs",
    "Prompt",
    "StreamDecoder",
    "TokenFile",
    "Tokenizer",
    "add_template",
    "conversation_rows",
    "encode_conversations",
    "encode_labelled",
    "encode_pairs",
    "encode_prompts",
    "epoch_rows",
    "eval_batch",
    "eval_rows",
    "label_names",
    "labelled_batch",
    "load_corpus",
    "load_tokenizer",
    "pairs_batch",
    "random_batch",
    "read_conversations",
    "read_labelled",
    "read_pairs",
    "read_prompts",
    "split",
    "take_rows",
]
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "BPE": "jaxgpt.text.bpe",
        "BPETokenizer": "jaxgpt.text.tokenizers",
        "Batch": "jaxgpt.text.batches",
        "CharTokenizer": "jaxgpt.text.tokenizers",
        "ChatTemplate": "jaxgpt.text.chat",
        "Corpus": "jaxgpt.text.corpus",
        "DEFAULT_TEMPLATE": "jaxgpt.text.chat",
        "EncodedPair": "jaxgpt.text.encoded",
        "Labelled": "jaxgpt.text.examples",
        "LabelledIds": "jaxgpt.text.encoded",
        "Pairs": "jaxgpt.text.examples",
        "Prompt": "jaxgpt.text.records",
        "StreamDecoder": "jaxgpt.text.tokenizers",
        "TokenFile": "jaxgpt.text.token_files",
        "Tokenizer": "jaxgpt.text.tokenizers",
        "add_template": "jaxgpt.text.chat",
        "conversation_rows": "jaxgpt.text.examples",
        "encode_conversations": "jaxgpt.text.encoded",
        "encode_labelled": "jaxgpt.text.encoded",
        "encode_pairs": "jaxgpt.text.encoded",
        "encode_prompts": "jaxgpt.text.encoded",
        "epoch_rows": "jaxgpt.text.examples",
        "eval_batch": "jaxgpt.text.batches",
        "eval_rows": "jaxgpt.text.examples",
        "label_names": "jaxgpt.text.encoded",
        "labelled_batch": "jaxgpt.text.examples",
        "load_corpus": "jaxgpt.text.corpus",
        "load_tokenizer": "jaxgpt.text.tokenizers",
        "pairs_batch": "jaxgpt.text.examples",
        "random_batch": "jaxgpt.text.batches",
        "read_conversations": "jaxgpt.text.records",
        "read_labelled": "jaxgpt.text.records",
        "read_pairs": "jaxgpt.text.records",
        "read_prompts": "jaxgpt.text.records",
        "split": "jaxgpt.text.records",
        "take_rows": "jaxgpt.text.examples",
    },
)
