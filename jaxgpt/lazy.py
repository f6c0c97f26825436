"""Names that a package gives before it has imported what they name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping


def on_first_use(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562): names by a table of name → module, and its modules.

    Flags, `--help` and tokenizers so work without waiting for JAX, and `import jaxgpt` is enough for all that is in it.
    """

    def get(name: str) -> object:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        if name.startswith("_") or importlib.util.find_spec(f"{package}.{name}") is None:
            public = ", ".join(name for name in names() if not name.startswith("_"))
            raise AttributeError(f"{package} has no public name {name!r}; there are {public}")
        return importlib.import_module(f"{package}.{name}")

    def names() -> list[str]:
        itself = importlib.import_module(package)
        modules = (module.name for module in pkgutil.iter_modules(itself.__path__))
        return sorted({*homes, *modules, *(name for name in vars(itself) if name.startswith("__"))})

    return get, names
