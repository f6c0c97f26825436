"""The default run of `train.py` as a script in PyTorch: `python -m benchmarks.torch_run --out_dir DIR`.

The same text, sizes, recipe, updates, evaluations and checkpoints. JAX is not loaded; the batches are its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_step import make_torch_step
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.model.config import GPTConfig
from jaxgpt.stages.pretrain import PretrainConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, required=True)
    folder: Path = parser.parse_args(argv).out_dir
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    flags = PretrainConfig(preset="shakespeare-char-cpu")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(PLAYS_FOLDER.glob("*.txt")))
    ids = {char: i for i, char in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[char] for char in text])
    cut = int(0.9 * len(tokens))
    model = TorchGPT(replace(GPTConfig.preset(flags.preset or ""), vocab_size=len(ids))).apply(_initialise)
    step = make_torch_step(model, flags)
    for update in range(flags.max_iters + 1):
        if update % flags.eval_interval == 0:
            print(f"step {update}: val loss {_evaluate(model, tokens[cut:], flags):.4f}", flush=True)
            torch.save(model.state_dict(), folder / "ckpt.pt")
        if update < flags.max_iters:
            step(*_batch(tokens[:cut], flags, model.config))


def _batch(tokens: Tensor, flags: PretrainConfig, config: GPTConfig) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(tokens) - config.n_positions, (flags.batch_size, 1))
    rows = tokens[starts + torch.arange(config.n_positions + 1)]
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.inference_mode()
def _evaluate(model: TorchGPT, tokens: Tensor, flags: PretrainConfig) -> float:
    losses = (model(*_batch(tokens, flags, model.config)).item() for _ in range(flags.eval_iters))
    return sum(losses) / flags.eval_iters


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


if __name__ == "__main__":
    main()
