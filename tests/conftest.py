"""What tests of every folder share."""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import jaxtyping
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import HealthCheck, settings

from benchmarks.soak import ENVIRONMENT

# Programs compile in half the time, of which tests compile thousands. `XLA_FLAGS= make test` compiles as users do.
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# What a shell runs in the background ignores SIGINT, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts speed, and on a busy machine anything may take long.
settings.register_profile("jaxgpt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("jaxgpt")


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package itself meet values of a wrong type, as it does outside the test run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def flax_layout() -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """A function from tensors, by HF's names in PyTorch, to the tree that transformers 4 makes of them in Flax."""
    return _flax_layout


def _flax_layout(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = {}
    for name, values in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            leaf = {"wte": "embedding", "wpe": "embedding"}.get(modules[-1], "kernel")
            leaf = "scale" if modules[-1].startswith("ln_") else leaf
        found[*modules, leaf] = np.ascontiguousarray(values.T) if leaf == "kernel" else values
    return unflatten_dict(found)
