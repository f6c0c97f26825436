"""The model: a pure function of (parameters, tokens, cache).

In: token ids (B, T), a `GPTConfig`, a plain tree of parameters, and for decoding a `KVCache`.
Out: logits (B, T, V) in f32 and the cache with the tokens added.
"""

from jaxgpt.lazy import on_first_use

__getattr__, __dir__ = on_first_use(__name__, {})
