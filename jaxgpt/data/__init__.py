"""A corpus comes in; token files, and batches as a function of (seed, step), go out.

A corpus is opened by name or path. Nothing here but `batches` waits for JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.data.batches import Batch, eval_batch, random_batch
    from jaxgpt.data.corpus import Corpus, load_corpus
    from jaxgpt.data.tokens.mixture import Mixture
    from jaxgpt.data.tokens.shards import Tokens, TokenShards
    from jaxgpt.data.tokens.token_files import TokenFile

__all__ = [
    "Batch",
    "Corpus",
    "Mixture",
    "TokenFile",
    "TokenShards",
    "Tokens",
    "eval_batch",
    "load_corpus",
    "random_batch",
]
__getattr__, __dir__ = on_first_use(__name__)
