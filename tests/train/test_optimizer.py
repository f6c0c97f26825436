"""The optimizer: nanoGPT's schedule at every update, and torch's AdamW with clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.model.atlas import map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.optimizer import adamw, schedule


def get_lr(config: OptimizerConfig, it: int) -> float:
    """nanoGPT's, from its train.py."""
    if it < config.warmup_iters:
        return config.learning_rate * (it + 1) / (config.warmup_iters + 1)
    if it > config.decay_iters:
        return config.final_lr
    decay_ratio = (it - config.warmup_iters) / (config.decay_iters - config.warmup_iters)
    return config.final_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (config.learning_rate - config.final_lr)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warmup_iters": 0},
        {"warmup_iters": 1},
        {"min_lr": 0.0},
        {"min_lr": 1e-3},
        {"lr_decay_iters": 150, "warmup_iters": 149},
        {"lr_decay_iters": 400},
    ],
    ids=str,
)
def test_the_schedule_is_nanogpts_at_every_update(options: dict):
    config = OptimizerConfig(**{"max_iters": 200, "warmup_iters": 20, **options})
    updates = np.arange(config.max_iters + 50)
    rates = schedule(config)(jnp.asarray(updates))
    # The cosine is f32.
    np.testing.assert_allclose(rates, [get_lr(config, int(i)) for i in updates], rtol=1e-5, atol=1e-9)


def test_warmup_may_fill_the_whole_schedule():
    config = OptimizerConfig(max_iters=10, warmup_iters=10)
    rates = schedule(config)(jnp.arange(12))
    np.testing.assert_allclose(rates[:10], [get_lr(config, i) for i in range(10)], rtol=1e-6)
    np.testing.assert_allclose(rates[11], config.final_lr, rtol=1e-6)


@pytest.mark.parametrize("grad_clip", [1.0, None])
def test_ten_updates_equal_torch(grad_clip: float | None):
    torch = pytest.importorskip("torch")
    model = GPTConfig(vocab_size=19, n_positions=8, n_embd=12, n_layer=1, n_head=3)
    config = OptimizerConfig(max_iters=10, warmup_iters=3, learning_rate=1e-2, min_lr=1e-3, grad_clip=grad_clip)
    generator = np.random.default_rng(0)
    optimizer = adamw(config, model)
    params = map_parameters(model, lambda p: jnp.asarray(generator.normal(0, 0.5, p.shape), jnp.float32))
    state, update = optimizer.init(params), jax.jit(optimizer.update)

    theirs = {p.path: torch.nn.Parameter(torch.tensor(np.array(find(params, p.path)))) for p in parameters(model)}
    groups = [
        {"params": [p for p in theirs.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=1e-8)

    for it in range(10):
        # Norms from 0.4 to 20: some are clipped, some are not.
        size = 0.01 * 1.5**it
        gradients = map_parameters(model, lambda p, size=size: generator.normal(0, size, p.shape).astype(np.float32))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for path, parameter in theirs.items():
            parameter.grad = torch.tensor(find(gradients, path))
        if grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), grad_clip)
        for group in reference.param_groups:
            group["lr"] = get_lr(config, it)
        reference.step()
        for path, parameter in theirs.items():
            np.testing.assert_allclose(find(params, path), parameter.detach().numpy(), atol=1e-6, err_msg=str(path))


def test_clipping_bounds_the_global_norm():
    """What reaches the moments is the gradient's direction."""
    model = GPTConfig(vocab_size=19, n_positions=8, n_embd=12, n_layer=1, n_head=3)
    optimizer = adamw(OptimizerConfig(grad_clip=0.1), model)
    update = jax.jit(lambda gradients: optimizer.update(gradients, optimizer.init(gradients), gradients)[1])
    moments = []
    for size in (1.0, 1000.0):
        state = update(map_parameters(model, lambda p, size=size: np.full(p.shape, size, np.float32)))
        moments.append(optax.tree_utils.tree_get(state, "mu"))
    for moment in moments:
        squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moment))
        np.testing.assert_allclose(np.sqrt(squares), (1 - 0.9) * 0.1, rtol=1e-5)


def find(tree, path):
    for key in path:
        tree = tree[key]
    return tree
