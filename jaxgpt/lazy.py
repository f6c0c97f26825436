"""Names that a package gives before it has imported what they name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def on_first_use(homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a package's `__getattr__` (PEP 562) for a table of name → module.

    Flags, `--help` and tokenizers so work without waiting for JAX.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"no public name {name!r}; there are {', '.join(homes)}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
