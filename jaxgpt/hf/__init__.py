"""The door to PyTorch: Hugging Face folders, hub names and nanoGPT checkpoints ⇄ (config, params).

In: a name, a folder or a checkpoint file. Out: a `GPTConfig` and a tree of parameters; and the same the other way.
"""

from jaxgpt.lazy import on_first_use

__getattr__, __dir__ = on_first_use(__name__, {})
