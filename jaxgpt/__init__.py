"""jaxgpt: the GPT-2 family in JAX and Flax, from text to a model that speaks.

Shapes everywhere are written in one alphabet: B batch, T query time, S key time, D embed, H heads, K head dim,
F mlp, V vocab, P positions, L layers, N labels, R rank of adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.data.corpus import load_corpus
    from jaxgpt.decode.engine import generate
    from jaxgpt.hf.convert import load_pretrained, save_pretrained
    from jaxgpt.model.config import GPTConfig
    from jaxgpt.model.gpt import GPT
    from jaxgpt.tokenizers.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "generate", "load_corpus", "load_pretrained", "load_tokenizer", "save_pretrained"]
__getattr__, __dir__ = on_first_use(__name__)
