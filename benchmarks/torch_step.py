"""One update in PyTorch, as nanoGPT has it: compiled loss, backward, clipping, fused AdamW, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.torch_gpt import TorchGPT
from jaxgpt.train.config import OptimizerConfig

if TYPE_CHECKING:  # it imports JAX
    from jaxgpt.data.batches import Batch


def make_torch_step(
    model: TorchGPT, config: OptimizerConfig, *, compiled: bool = True, autocast: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that moves the model by tokens and targets and returns the loss before.

    Args:
        model: to train; compiling leaves its parameters where they are.
        config: our recipe.
        compiled: by torch.compile as a single graph, so that nothing falls back to eager mode unseen.
        autocast: products in bf16, and what stays f32 in TF32 where a GPU has it.
    """
    if autocast:
        torch.set_float32_matmul_precision("high")
    loss_of = torch.compile(model, fullgraph=True) if compiled else model
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(config, i) / config.learning_rate)

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            loss = loss_of(tokens, targets)
        loss.backward()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        return loss.detach()

    return step


def as_tensors(batch: Batch, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return tokens and targets as PyTorch wants them; a GPU's are copied while it works."""
    tokens, targets = (torch.tensor(ids, dtype=torch.long) for ids in (batch.tokens, batch.targets))
    if device == "cpu":
        return tokens, targets
    tokens, targets = (ids.pin_memory().to(device, non_blocking=True) for ids in (tokens, targets))
    return tokens, targets


def rate(config: OptimizerConfig, update: int) -> float:
    """Return the learning rate: linear warmup, then half a cosine down to `final_lr`."""
    if update < config.warmup:
        return config.learning_rate * (update + 1) / (config.warmup + 1)
    done = min((update - config.warmup) / max(config.decay_iters - config.warmup, 1), 1.0)
    return config.final_lr + (config.learning_rate - config.final_lr) * (1 + math.cos(math.pi * done)) / 2
