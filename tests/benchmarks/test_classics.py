from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import classics
from benchmarks.roofline import Load, Roof, model_load
from benchmarks.shapes import progress
from jaxgpt import GPT, GPTConfig, generate
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import decode_step, prefill
from jaxgpt.model.cache import KVCache
from jaxgpt.train import init_params

TINY = replace(classics.CONFIG, vocab_size=61, n_positions=64, n_embd=32, n_layer=2)
# Wide heads and layers, beside which softmax and layer norm are little, as they are in GPT-2.
WIDE = GPTConfig(vocab_size=512, n_positions=64, n_embd=256, n_layer=2, n_head=2)


@pytest.mark.parametrize(("length", "count"), [(1, 63), (16, 48), (17, 47)])
def test_decoding_without_a_cache_gives_the_same_ids(length, count):
    params = jax.tree.map(lambda x: 5 * x, init_params(GPT(TINY), seed=0))
    prompt = np.random.default_rng(0).integers(TINY.vocab_size, size=length).tolist()
    [expected] = generate(TINY, params, [prompt], max_new_tokens=count)
    assert classics.uncached(TINY, params, prompt, max_new_tokens=count) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_naive_attention_is_ours(monkeypatch, direction):
    monkeypatch.setattr(classics, "QKV", (2, 3, 70, 8))
    ours, naive = (
        program(*inputs) for program, inputs in (classics.passes(f, direction) for f in (classics.ours, classics.naive))
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_flops_counted_are_those_of_the_programs(rows, unchecked_types):
    model, slots, width = GPT(WIDE), 48, 32
    params = jax.eval_shape(lambda: init_params(model, seed=0))
    begin, start = progress([[0] * slots] * rows), jnp.zeros(rows, jnp.int32)
    cache = KVCache.empty(WIDE, start, slots, jnp.float32, new=False)
    programs = {
        width: prefill.lower(model, Sampling(), params, begin, start, width=width),
        1: jax.jit(decode_step, static_argnums=(0, 1)).lower(model, Sampling(), params, cache, begin),
    }
    for count, program in programs.items():
        counted = program.cost_analysis()["flops"]
        assert 0.94 * counted < model_load(WIDE, rows, count, slots).flops <= counted


def test_the_bytes_counted_are_those_of_matrices_and_cache():
    params = jax.eval_shape(lambda: init_params(GPT(WIDE), seed=0))
    del params["wpe"]  # of which a token reads one row
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    cache = KVCache.empty(WIDE, jnp.zeros(3, jnp.int32), 48, jnp.float32)
    buffers = sum(leaf.size for leaf in (*cache.key_buffers, *cache.value_buffers))
    assert model_load(WIDE, 3, 1, 48).read == 4 * (matrices + buffers)


def test_memory_bounds_below_the_ridge_and_arithmetic_above():
    roof = Roof(flops=100.0, read=20.0)
    assert [roof.attainable(Load(flops, 2.0).intensity) for flops in (2.0, 10.0, 50.0)] == [20.0, 100.0, 100.0]
