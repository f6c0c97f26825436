"""A vocabulary that grows: what was there stays, and what comes is like it, each row on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.resize import extend_vocabulary, key_of

CONFIG = GPTConfig(vocab_size=300, n_positions=4, n_embd=32, n_layer=1, n_head=2, tie_word_embeddings=False)
TABLES = (("wte", "embedding"), ("lm_head", "kernel"))


@pytest.fixture(scope="module")
def grown():
    params = GPT(CONFIG).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    config, more = extend_vocabulary(CONFIG, params, 500, jax.random.key(0))
    assert config.vocab_size == 500
    return flatten_dict(params), flatten_dict(more)


def test_what_was_there_is_unchanged(grown):
    before, after = grown
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path][: len(leaf)], leaf)


def test_new_rows_are_like_the_others_and_no_two_tables_get_the_same(grown):
    before, after = grown
    tables = [path for path in before if len(after[path]) > len(before[path])]
    assert len(tables) == 2
    drawn = [(after[path][300:] - before[path].mean(0)) / before[path].std(0) for path in tables]
    for rows in drawn:
        assert abs(float(rows.mean())) < 0.05 and abs(float(rows.std()) - 1) < 0.05
    assert abs(float((drawn[0] * drawn[1]).mean())) < 0.05, "they are independent"


@pytest.mark.parametrize("seed", [0, 1337])
def test_what_is_drawn_at_the_start_shares_no_key_with_an_update(seed):
    """Adapters' dropout in update n has a key made of (seed, n); so had the adapters' n-th matrix."""
    data = jax.random.key_data
    updates = jax.vmap(lambda n: data(jax.random.fold_in(jax.random.key(seed), n)))(jnp.arange(10_000))
    first = [key_of(seed, what) for what in ("adapters", "head", "vocabulary")]
    keys = {tuple(np.asarray(data(key)).tolist()) for key in first}
    keys |= {tuple(np.asarray(data(jax.random.fold_in(first[0], n))).tolist()) for n in range(100)}
    assert len(keys) == 103 and not keys & {tuple(key) for key in np.asarray(updates).tolist()}
