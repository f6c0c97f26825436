"""Runs of PPO small enough for a test."""

import pytest

from tests.tiny_ppo import TinyPPO


@pytest.fixture(scope="session")
def rewarded() -> TinyPPO:
    return TinyPPO()
