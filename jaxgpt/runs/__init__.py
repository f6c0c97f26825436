"""A run's folder: its record, its checkpoints, and the model in it.

In: a folder, or whatever else holds a model. Out: (config, parameters, tokenizer), or a state to go on from; and what
training hands over to be written, whole or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.runs.checkpoint import Checkpoints
    from jaxgpt.runs.weights import check_tokenizer, load_params, open_model, save_params

__all__ = ["Checkpoints", "check_tokenizer", "load_params", "open_model", "save_params"]
__getattr__, __dir__ = on_first_use(__name__)
