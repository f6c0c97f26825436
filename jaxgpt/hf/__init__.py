"""The door to PyTorch: Hugging Face folders, hub names and nanoGPT checkpoints ⇄ (config, params).

In: a name, a folder or a checkpoint file. Out: a `GPTConfig` and a tree of parameters; and the same the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.hf.convert import cut_padding, load_pretrained, save_pretrained

__all__ = ["cut_padding", "load_pretrained", "save_pretrained"]
__getattr__, __dir__ = on_first_use(__name__)
