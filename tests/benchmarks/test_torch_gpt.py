from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_step import as_tensors, make_torch_step, rate
from jaxgpt.data.batches import random_batch
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives import pretrain
from jaxgpt.train import OptimizerConfig, TrainState, adamw, init_params, make_step, run
from jaxgpt.train.optimizer import schedule

CONFIG = GPTConfig(
    vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
TOKENS = np.arange(1000) % CONFIG.vocab_size
# Large steps over few updates, so that clipping, decay and every part of the schedule matter.
RECIPE = OptimizerConfig(max_iters=5, warmup_iters=2, learning_rate=1e-2, grad_clip=0.5, weight_decay=1.0)


def batches(step):
    return random_batch(TOKENS, seed=0, step=step, batch_size=4, block_size=16)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def config(request):
    return replace(CONFIG, bias=request.param)


@pytest.fixture
def params(config):
    """Random weights and biases, a few times larger than at the start of a run."""
    leaves, tree = jax.tree.flatten(init_params(GPT(config), seed=0))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture
def twin(config, params):
    model = TorchGPT(config)
    model.load(params)
    return model


def test_logits_equal_ours(config, params, twin):
    tokens = batches(0).tokens
    ours = GPT(config).apply({"params": params}, jnp.asarray(tokens))[0]
    with torch.inference_mode():
        theirs = twin.logits(torch.tensor(tokens))
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-4)


def test_losses_of_five_updates_equal_ours(config, params, twin):
    optimizer = adamw(RECIPE, config)
    step = jax.jit(make_step(pretrain(GPT(config)), optimizer, seed=0))
    ours = [float(metrics.loss) for _, _, metrics in run(step, TrainState.create(params, optimizer), batches, until=5)]
    move = make_torch_step(twin, RECIPE, compiled=False)
    theirs = [float(move(*as_tensors(batches(i)))) for i in range(5)]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert abs(ours[0] - ours[-1]) > 0.1


@pytest.mark.parametrize("warmup", [0, 4, 20])
def test_learning_rates_equal_ours(warmup):
    config = OptimizerConfig(max_iters=20, warmup_iters=warmup)
    ours = schedule(config)
    np.testing.assert_allclose([rate(config, i) for i in range(25)], [ours(i) for i in range(25)], rtol=1e-5)
