"""The verification chain's last part: does this model learn what PyTorch's learns, gradient by gradient?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxgpt.data.batches import Batch
from jaxgpt.devices import free_memory
from jaxgpt.hf.convert import HEAD, save_pretrained
from jaxgpt.model.atlas import Parameter, count, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives import pretrain
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import TrainState
from jaxgpt.train.step import gradient, make_step
from jaxgpt.verification.outputs import Check, check, import_pytorch

STEPS, ROWS, LENGTH = 10, 2, 32
GRADIENT_BAR, LOSS_BAR = 1e-4, 1e-4
RECIPE = OptimizerConfig(max_iters=STEPS, learning_rate=1e-4, decay_lr=False, beta2=0.95)
# Weights, gradients, two moments and a copy, ours and PyTorch's.
COPIES = 10


@dataclass(frozen=True)
class Learnt:
    """The same updates by PyTorch: the gradients of the first by HF's names, and each one's loss."""

    gradients: Mapping[str, np.ndarray]
    losses: np.ndarray


def verify_training(config: GPTConfig, params: Mapping[str, Any]) -> list[Check]:
    """Compare the gradient of every tensor, and ten updates by AdamW with clipping and decay, with PyTorch's.

    Both begin with these parameters in f32, without dropout, and read the same random tokens in each update.

    Args:
        config, params: a model that transformers can open.

    Raises:
        UsageError: PyTorch or transformers is not installed.
    """
    config = replace(config, labels=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    params = {name: leaf for name, leaf in params.items() if name != "score"}
    names = "every gradient against PyTorch", f"{STEPS} updates by AdamW against PyTorch"
    bars = f"at most {GRADIENT_BAR:g} of each tensor's largest", f"each loss within {LOSS_BAR:g}"
    needed, free = COPIES * 4 * count(config)["total"], free_memory()
    if free is not None and needed > free:
        why = f"takes {needed / 2**30:.1f} GiB of memory, of which {free / 2**30:.1f} are free"
        return [Check(name, "not applicable", why, bar) for name, bar in zip(names, bars, strict=True)]
    rows = np.random.default_rng(1).integers(config.vocab_size, size=(ROWS, min(LENGTH, config.n_positions)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    theirs = ask_pytorch_to_learn(config, params, rows)
    with jax.default_matmul_precision("highest"):
        worst, which = worst_gradient(config, params, rows, theirs.gradients)
        losses = learn(config, params, rows)
    difference = np.abs(losses - theirs.losses).max()
    return [
        check(names[0], worst <= GRADIENT_BAR, f"{len(theirs.gradients)}; worst {worst:.2e}, of {which}", bars[0]),
        check(
            names[1],
            difference <= LOSS_BAR,
            f"loss {losses[0]:.4f} to {losses[-1]:.4f}; largest difference {difference:.2e}",
            bars[1],
        ),
    ]


def worst_gradient(
    config: GPTConfig, params: Any, rows: np.ndarray, expected: Mapping[str, np.ndarray]
) -> tuple[float, str]:
    """Return the largest difference of a gradient, in units of its tensor's largest, and the tensor's name."""
    ours, _ = jax.jit(partial(gradient, pretrain(GPT(config)), key=None))(params, {}, _batch(rows))
    gradients = flatten_dict(ours)
    found = []
    for row in parameters(config):
        theirs = expected[row.hf_name]
        found.append((float(np.abs(gradients[row.path] - theirs).max() / np.abs(theirs).max()), row.hf_name))
    return max(found, key=lambda one: (np.isnan(one[0]), one[0]))  # NaN is the worst


def learn(config: GPTConfig, params: Any, rows: np.ndarray) -> np.ndarray:
    """Return the loss of each update by the step that every run takes."""
    optimizer = adamw(RECIPE, config)
    step = jax.jit(make_step(pretrain(GPT(config)), optimizer, seed=0))
    state, losses = TrainState.create(params, optimizer), []
    for _ in range(STEPS):
        state, metrics = step(state, _batch(rows))
        losses.append(float(metrics.loss))
    return np.array(losses)


def ask_pytorch_to_learn(config: GPTConfig, params: Any, rows: np.ndarray) -> Learnt:
    """Let transformers' model take the same updates, by `torch.optim.AdamW`."""
    torch, transformers = import_pytorch()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, config, params)
        model = transformers.GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation="eager", local_files_only=True
        ).eval()
    named = {row.hf_name: model.get_parameter(_their_name(row)) for row in parameters(config)}
    groups = [
        {
            "params": [named[row.hf_name] for row in parameters(config) if row.row.decay == decays],
            "weight_decay": RECIPE.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=RECIPE.learning_rate, betas=(RECIPE.beta1, RECIPE.beta2))
    tokens, gradients, losses = torch.from_numpy(rows), {}, []
    for _ in range(STEPS):
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if not gradients:
            gradients = {name: _array(parameter.grad) for name, parameter in named.items()}
        torch.nn.utils.clip_grad_norm_(list(named.values()), RECIPE.grad_clip or float("inf"))
        optimizer.step()
    return Learnt(gradients, np.array(losses))


def _batch(rows: np.ndarray) -> Batch:
    tokens = rows.astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((len(rows), rows.shape[1] - 1), np.float32))


def _their_name(row: Parameter) -> str:
    return HEAD if row.hf_name == HEAD else f"transformer.{row.hf_name}"


def _array(gradient: Any) -> np.ndarray:
    return gradient.detach().clone().numpy()
