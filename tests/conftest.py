"""What tests of every folder share."""

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import HealthCheck, settings
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.soak import ENVIRONMENT

# Tests compile thousands of programs, each in a fifth of the time. `XLA_FLAGS= make test` compiles as users do.
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# What a shell runs in the background ignores SIGINT, and under nohup SIGHUP; so would all processes that tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# No test asserts speed, and on a busy machine anything may take long.
settings.register_profile("jaxgpt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("jaxgpt")


# Imports leave 800,000 objects that stay: collecting garbage among them was a twelfth of what a worker did.
gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was imported to itself, and look through the rest more seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile equal programs once for all tests of this process and for the processes that they start.

    The latter only read what is kept: one that is killed while it writes would leave half a program to the next.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if programs_are_found_again():
        os.environ.update(JAX_COMPILATION_CACHE_DIR=folder, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9")
    else:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", None)


def programs_are_found_again() -> bool:
    """Return whether JAX takes a program from its cache without a word; on some processors it rejects each one."""
    said = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            for _ in range(2):
                jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) + 1)(np.arange(8.0, dtype=np.float32)))
                jax.clear_caches()
        finally:
            os.dup2(said, 2)
            os.close(said)
        return file.tell() == 0


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package itself meet values of a wrong type, as it does outside the test run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A run with a model of one layer, with dropout, on a text that counts."""
    from tests.tiny_run import TinyRun

    return TinyRun()


@pytest.fixture(scope="session")
def bigram() -> Any:
    """A model that sees one token only."""
    from tests.tiny_run import Bigram

    return Bigram


@pytest.fixture(scope="session")
def draw() -> Any:
    """A function from a config to parameters that tell texts apart."""
    from tests.tiny_run import draw

    return draw


@pytest.fixture(scope="session")
def rewarded() -> Any:
    """A run of PPO with a model as small."""
    from tests.tiny_ppo import TinyPPO

    return TinyPPO()


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
