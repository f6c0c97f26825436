"""The budget: the papers' count of arithmetic, which is XLA's, and the vendors' peaks."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.devices import compiling_for
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.train import budget
from jaxgpt.train.budget import flops_per_token, peak_flops


def test_flops_of_gpt2():
    """6 N + 12 L D T, N without the position embeddings, as in nanoGPT's estimate_mfu."""
    assert flops_per_token(GPTConfig(), 1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_only_what_is_multiplied_counts():
    def flops(**options):
        return flops_per_token(GPTConfig(**options), 64)

    assert flops(n_positions=64) == flops(n_positions=4096) == flops(position_embedding="sinusoidal")
    assert flops(tie_word_embeddings=False) == flops()


def test_flops_are_those_xla_counts():
    config = GPTConfig(vocab_size=512, n_positions=64, n_embd=128, n_layer=2, n_head=2)
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)["params"]

    def loss(params, tokens):
        return GPT(config).apply({"params": params}, tokens)[0].sum()

    counted = jax.jit(jax.grad(loss)).lower(params, tokens).cost_analysis()["flops"]
    # XLA also counts what is done element by element, and here the gradient of the sum is cheaper than of a loss.
    assert counted == pytest.approx(flops_per_token(config, 64) * tokens.size, rel=0.1)
    assert count(config)["total"] == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v4", 275),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_peak_is_that_of_the_longest_name_that_fits(kind, tflops):
    with compiling_for([SimpleNamespace(device_kind=kind)] * 4):
        found = peak_flops()
    assert found == (None if tflops is None else 4e12 * tflops)


@pytest.mark.usefixtures("unchecked_types")  # what is lowered keeps notes in the place of a batch's arrays
def test_the_table_adds_up(tiny):
    compiled = tiny.step.lower(tiny.abstract, tiny.batches(0)).compile()
    text = budget.table(tiny.config, length=8, rows=4, compiled=compiled, counted=True)
    total = count(tiny.config)["total"]
    assert f"{total:,}" in text and "100.0%" in text
    assert "32 (4 rows of 8)" in text
    assert f"{flops_per_token(tiny.config, 8) / 1e6:,.2f} MFLOP a token" in text
