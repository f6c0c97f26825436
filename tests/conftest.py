"""What tests of every folder share."""

import os
import signal

import jaxtyping
import pytest
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
