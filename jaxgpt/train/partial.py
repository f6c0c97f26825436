"""Which parameters are trained: all of them, the last blocks, or the head alone.

Nothing here imports JAX, so that a mistyped flag is an answer, not a wait.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig


def trains(config: GPTConfig, which: str) -> Callable[[tuple[str, ...]], bool]:
    """Return for which paths a parameter is trained.

    The backward pass ends where nothing below is trained: what is frozen costs memory and a forward pass only.

    Args:
        config: the model's.
        which: "all"; "last_K" for the last K blocks and all that comes after them: the final layer norm and the heads
            that are there, but not an LM head that is the embedding table; "head" for the scores alone.

    Raises:
        UsageError: none of these, more blocks than the model has, or a head that it does not have.
    """
    if which == "all":
        return lambda path: True
    if which == "head":
        if config.labels is None:
            raise UsageError("train_layers is 'head', but this model has no head that scores; valid are all and last_K")
        return lambda path: path[0] == "score"
    found = re.fullmatch("last_([0-9]+)", which)
    if found is None or not 1 <= int(found[1]) <= config.n_layer:
        valid = f"all, head, or last_K with K from 1 to n_layer, {config.n_layer}"
        raise UsageError(f"train_layers is {which!r}; it must be {valid}")
    frozen = {"wte", "wpe", *(f"h_{i}" for i in range(config.n_layer - int(found[1])))}
    return lambda path: path[0] not in frozen
