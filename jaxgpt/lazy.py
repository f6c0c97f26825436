"""Names that a package gives before it has imported what they name."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable


def on_first_use(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562), for its public names and its modules.

    Its names are those that its `__init__.py` imports for type checkers, which stand nowhere else. Flags, `--help` and
    tokenizers so work without waiting for JAX, and `import jaxgpt` is enough for all that is in it.
    """
    return functools.partial(_get, package), functools.partial(_names, package)


def _get(package: str, name: str) -> object:
    if name.startswith("_"):
        raise AttributeError(f"{package} has no public name {name!r}")
    if (home := _homes(package).get(name)) is not None:
        return getattr(importlib.import_module(home), name)
    if importlib.util.find_spec(f"{package}.{name}") is None:
        public = ", ".join(name for name in _names(package) if not name.startswith("_"))
        raise AttributeError(f"{package} has no public name {name!r}; there are {public}")
    return importlib.import_module(f"{package}.{name}")


def _names(package: str) -> list[str]:
    itself = importlib.import_module(package)
    modules = (module.name for module in pkgutil.iter_modules(itself.__path__))
    return sorted({*_homes(package), *modules, *(name for name in vars(itself) if name.startswith("__"))})


@functools.cache
def _homes(package: str) -> dict[str, str]:
    """Read name → module off a package's own source."""
    imports = ast.walk(ast.parse(inspect.getsource(importlib.import_module(package))))
    own = [node for node in imports if isinstance(node, ast.ImportFrom) and node.col_offset > 0]
    return {alias.name: str(node.module) for node in own for alias in node.names}
