"""Training: the step of `train.py` in our loop, against PyTorch's in the same loop; each draws its batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import jax

from benchmarks.timing import Benchmark, Work, last, run_python
from jaxgpt.devices import start_devices
from jaxgpt.mesh import make_mesh
from jaxgpt.model.config import GPTConfig
from jaxgpt.stages.pretrain import Pretrain, PretrainConfig
from jaxgpt.train.loop import run
from jaxgpt.train.state import TrainState
from jaxgpt.train.trainer import Trainer

if TYPE_CHECKING:  # at run time only in PyTorch's own process
    from torch import Tensor

    from benchmarks.torch_gpt import TorchGPT

OURS, PYTORCH = "jaxgpt", "PyTorch, torch.compile"

# In f32, on the bundled plays, without dropout.
CPU = PretrainConfig(preset="shakespeare-char-cpu")
CHAR = PretrainConfig(preset="shakespeare-char", dropout=0.0, batch_size=8)
GPT2 = PretrainConfig(preset="gpt2", tokenizer="gpt2", block_size=256, dropout=0.0, batch_size=2)
GPT2_LONG = replace(GPT2, block_size=1024, batch_size=1)


def benchmarks() -> list[Benchmark]:
    return [
        _benchmark("train-cpu", CPU, 20),
        _benchmark("train-char", CHAR, 2),
        _benchmark("train-char-dropout", replace(CHAR, dropout=0.2), 2),
        _benchmark("train-124m", GPT2, 1),
        _benchmark("train-124m-1024", GPT2_LONG, 1),
        Benchmark(
            "train-run",
            "the default run of `train.py` as a process, from start to end; PyTorch's draws no curve and no sample",
            "run",
            1,
            {OURS: partial(_run, "train.py"), PYTORCH: partial(_run, "-m", "benchmarks.torch_run")},
            rounds=2,
        ),
    ]


def _benchmark(name: str, flags: PretrainConfig, steps: int) -> Benchmark:
    makes = {OURS: partial(_ours, flags, steps), PYTORCH: partial(_pytorch, flags, steps)}
    return Benchmark(name, describe(flags), "step", steps, makes, tokens=flags.batch_size * sizes(flags)[1])


def sizes(flags: PretrainConfig) -> tuple[GPTConfig, int]:
    """Return the preset that flags name, and T."""
    config = GPTConfig.preset(flags.preset or "")
    return config, flags.block_size or config.n_positions


def describe(flags: PretrainConfig, batch: str = "") -> str:
    """Return a line on what is trained; `batch` says how many rows it has if the flags don't."""
    config, length = sizes(flags)
    rate = f", dropout {flags.dropout}" if flags.dropout else ""
    return f"{config.n_layer} layers of width {config.n_embd}, {batch or f'batch {flags.batch_size}'} × {length}{rate}"


def begin(flags: PretrainConfig) -> tuple[Pretrain, Trainer]:
    """Return what `train.py` trains with these flags, and its step on this machine's devices."""
    stage = Pretrain(flags)
    stage.open(Path(flags.out_dir), None)
    return stage, stage.trainer(make_mesh())


def train_ours(flags: PretrainConfig, device: str = "cpu") -> tuple[Pretrain, Iterator[TrainState]]:
    """Return the stage and, update after update, the state."""
    start_devices(device)
    stage, trainer = begin(flags)
    state = trainer.start(stage.init_params)
    trainer.begin(stage.batch, 0)  # as `Stage.fit` does
    states = run(trainer.step, state, partial(trainer.feed, stage.batch), until=sys.maxsize)
    return stage, (state for _, state, _ in states)


def train_pytorch(flags: PretrainConfig, device: str = "cpu") -> tuple[Pretrain, TorchGPT, Iterator[Tensor]]:
    """Return the stage, the model, which the updates move, and, update after update, the loss.

    JAX draws the initial weights, and from then on has nothing to do in this process.
    """
    from benchmarks.torch_gpt import TorchGPT
    from benchmarks.torch_step import as_tensors, make_torch_step

    stage, _ = begin(flags)
    model = TorchGPT(stage.config)
    model.load(stage.init_params(None))
    model.to(device)
    step = make_torch_step(model, flags, autocast=flags.dtype == "bfloat16")
    return stage, model, (step(*as_tensors(stage.batch(i), device)) for i in count())


def _run(*script: str) -> Work:
    """Return a run into a new folder, as the first on its machine: without what PyTorch compiled in earlier ones."""

    def work() -> None:
        with TemporaryDirectory() as folder:
            run_python(*script, "--out_dir", f"{folder}/run", TORCHINDUCTOR_CACHE_DIR=f"{folder}/cache")

    return work


def _ours(flags: PretrainConfig, steps: int) -> Work:
    _, states = train_ours(flags)
    return lambda: jax.block_until_ready(last(states, steps))


def _pytorch(flags: PretrainConfig, steps: int) -> Work:
    _, _, losses = train_pytorch(flags)
    return lambda: last(losses, steps)
