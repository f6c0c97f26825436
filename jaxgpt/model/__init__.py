"""The model: a pure function of (parameters, tokens, cache).

In: token ids (B, T), a `GPTConfig`, a plain tree of parameters, and for decoding a `KVCache`.
Out: logits (B, T, V) in f32 and the cache with the tokens added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.model.cache import KVCache
    from jaxgpt.model.config import GPTConfig
    from jaxgpt.model.gpt import GPT
    from jaxgpt.model.lora import adapter_parameters, add_adapters, init_adapters, is_beside, merge, without_adapters
    from jaxgpt.model.resize import extend_vocabulary, key_of, new_score

__all__ = [
    "GPT",
    "GPTConfig",
    "KVCache",
    "adapter_parameters",
    "add_adapters",
    "extend_vocabulary",
    "init_adapters",
    "is_beside",
    "key_of",
    "merge",
    "new_score",
    "without_adapters",
]
__getattr__, __dir__ = on_first_use(__name__)
