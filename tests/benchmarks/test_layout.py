from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from benchmarks.layout import StackedGPT, initial_params, stack
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=61, n_positions=16, n_embd=32, n_layer=3, n_head=4)


def test_stacked_layers_compute_what_ours_do_with_and_without_a_cache():
    tokens = jnp.arange(14).reshape(2, 7)
    ours = GPT(CONFIG).apply({"params": initial_params(GPT(CONFIG))}, tokens)[0]
    model = StackedGPT(CONFIG)
    variables = {"params": initial_params(model)}
    np.testing.assert_allclose(model.apply(variables, tokens)[0], ours, atol=1e-5)
    cache = KVCache.empty(CONFIG, jnp.zeros(2, jnp.int32), 16, jnp.float32)
    cache = replace(cache, key_buffers=(stack(cache.key_buffers),), value_buffers=(stack(cache.value_buffers),))
    _, cache = model.apply(variables, tokens[:, :4], cache)
    np.testing.assert_allclose(model.apply(variables, tokens[:, 4:], cache)[0], ours[:, 4:], atol=1e-5)
