"""The model is HF's GPT-2: logits, loss, every gradient and ten steps of training, for each option HF has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from jaxgpt.hf.convert import load_pretrained
from jaxgpt.model.activations import ACTIVATIONS
from jaxgpt.model.atlas import count, map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

TINY = {"vocab_size": 97, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OPTIONS = [
    {"n_inner": 40, "n_layer": 1},
    {"layer_norm_epsilon": 1e-2, "n_layer": 1},
    {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True, "n_layer": 1},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    {"scale_attn_weights": False, "n_layer": 1},
    {"tie_word_embeddings": False, "n_layer": 1},
    *({"activation_function": name, "n_layer": 1} for name in ACTIVATIONS),
]
SIZES = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def make_pair(folder, std=0.15, **options):
    """Return HF's model with random weights, and the same model here, read from the folder HF writes."""
    torch.manual_seed(0)
    settings = {**TINY, **NO_DROPOUT, "bos_token_id": None, "eos_token_id": None, **options}
    model = GPT2LMHeadModel(GPT2Config(**settings, initializer_range=std, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also those that start at 0 or 1
            parameter.add_(torch.randn_like(parameter), alpha=std / 5)
    model.save_pretrained(folder)
    return model, *load_pretrained(folder)


def make_tokens(config, batch, time):
    return np.random.default_rng(1).integers(config.vocab_size, size=(batch, time))


def loss_and_logits(params, config, tokens):
    logits, _ = GPT(config).apply({"params": params}, tokens)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()
    return loss, logits


def assert_same(model, config, params, tokens):
    """Compare logits, loss and every gradient; differences count in units of what is compared."""
    output = model(torch.tensor(tokens), labels=torch.tensor(tokens))
    output.loss.backward()
    gradients_of = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True), static_argnums=1)
    with jax.default_matmul_precision("highest"):
        (loss, logits), gradients = gradients_of(params, config, jnp.asarray(tokens))
    reference = output.logits.detach().numpy()
    assert np.abs(logits - reference).max() <= 1e-4 * reference.std()
    assert abs(loss - output.loss.item()) <= 1e-5
    for parameter in parameters(config):
        expected = theirs(model, parameter.hf_name).grad.numpy()
        difference = np.abs(lookup(gradients, parameter.path) - expected).max()
        assert difference <= 1e-4 * np.abs(expected).max(), parameter.hf_name


def theirs(model, hf_name):
    return model.get_parameter(hf_name if hf_name == "lm_head.weight" else f"transformer.{hf_name}")


def lookup(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_option(tmp_path, options):
    model, config, params = make_pair(tmp_path, **options)
    assert {name: getattr(config, name) for name in options} == options
    assert_same(model, config, params, make_tokens(config, 2, 24))


def test_ten_steps_of_adamw(tmp_path):
    model, config, params = make_pair(tmp_path, std=0.1)
    tokens = make_tokens(config, 4, 16)
    groups = {
        decay: [theirs(model, p.hf_name) for p in parameters(config) if p.row.decay == decay] for decay in (True, False)
    }
    their_optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.1}, {"params": groups[False], "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    optimizer = optax.adamw(3e-3, b2=0.95, weight_decay=0.1, mask=map_parameters(config, lambda p: p.row.decay))

    @jax.jit
    def step(params, state):
        (loss, _), gradients = jax.value_and_grad(loss_and_logits, has_aux=True)(params, config, jnp.asarray(tokens))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses, their_losses = optimizer.init(params), [], []
    for _ in range(10):
        with jax.default_matmul_precision("highest"):
            params, state, loss = step(params, state)
        losses.append(float(loss))
        their_loss = model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
        their_losses.append(their_loss.item())
        their_optimizer.zero_grad()
        their_loss.backward()
        their_optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    np.testing.assert_allclose(losses, their_losses, atol=1e-4)


@pytest.mark.slow
def test_full_size(tmp_path):
    model, config, params = make_pair(tmp_path, std=0.03, **{name: getattr(GPTConfig(), name) for name in TINY})
    assert count(config)["total"] == SIZES["gpt2"]
    assert_same(model, config, params, make_tokens(config, 1, 16))


@pytest.mark.parametrize("name", SIZES)
def test_names_and_shapes_of_each_size(name):
    config = GPTConfig.preset(name)
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**config.to_hf()))
    expected = {name.removeprefix("transformer."): tuple(p.shape) for name, p in model.named_parameters()}
    assert {p.hf_name: p.shape for p in parameters(config)} == expected
    ours = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, ours) == map_parameters(config, lambda p: p.shape)
    assert count(config)["total"] == model.num_parameters() == SIZES[name]
