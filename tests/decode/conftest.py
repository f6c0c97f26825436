import jax
import jax.numpy as jnp
import pytest

from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT


@pytest.fixture(scope="session")
def config() -> GPTConfig:
    return GPTConfig(
        vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4, eos_token_id=None, bos_token_id=None
    )


@pytest.fixture(scope="session")
def params(config):
    """Weights five times larger than usual, so that the likeliest token is far from certain and far from constant."""
    tree = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, tree)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [[5, 6, 7, 8, 9], [1], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [40, 41]]
