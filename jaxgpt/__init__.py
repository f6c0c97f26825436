"""jaxgpt: the GPT-2 family in JAX and Flax, from text to a model that speaks.

Shapes everywhere are written in one alphabet: B batch, T query time, S key time, D embed, H heads, K head dim,
F mlp, V vocab, P positions, L layers, N labels, R rank of adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.decode.engine import generate
    from jaxgpt.hf.convert import load_pretrained, save_pretrained
    from jaxgpt.model.config import GPTConfig
    from jaxgpt.model.layers import GPT

__all__ = ["GPT", "GPTConfig", "generate", "load_pretrained", "save_pretrained"]
__getattr__ = on_first_use(
    {
        "GPT": "jaxgpt.model.layers",
        "GPTConfig": "jaxgpt.model.config",
        "generate": "jaxgpt.decode.engine",
        "load_pretrained": "jaxgpt.hf.convert",
        "save_pretrained": "jaxgpt.hf.convert",
    }
)
