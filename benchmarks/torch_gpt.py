"""GPT-2 as PyTorch's users write it: the other side of the comparison.

On equal weights it computes what ours does; `tests/benchmarks/test_torch_gpt.py` holds it to that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxgpt.model.config import GPTConfig


class TorchGPT(nn.Module):
    """GPT-2 with learned positions, tied head, pre-norm blocks and the tanh GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = layer_norm(config)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean next-token cross-entropy; it is part of the module so that it is compiled with it."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def load(self, params: Any) -> None:
        """Take over our parameters; nn.Linear stores (out, in), Flax's kernels are (in, out)."""
        from jaxgpt.hf.convert import hf_tensors  # with JAX, which a run in PyTorch alone does without
        from jaxgpt.model.atlas import parameters

        tensors = hf_tensors(self.config, params)
        self.load_state_dict(
            {
                p.hf_name: torch.tensor(tensors[p.hf_name].T if p.path[-1] == "kernel" else tensors[p.hf_name])
                for p in parameters(self.config)
            }
        )


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = Attention(config)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = (config.n_head, config.head_dim)
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_pdrop, self.drop = config.attn_pdrop, nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, self.heads).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        rate = self.attn_pdrop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        return self.drop(self.c_proj(y.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_dim, bias=config.bias)
        self.c_proj = nn.Linear(config.inner_dim, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


def layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
