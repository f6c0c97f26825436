"""What tests of every folder share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package itself meet values of a wrong type, as it does outside the test run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
