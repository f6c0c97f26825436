"""What goes by before the first step: importing, a command's help, compilation."""

from __future__ import annotations

from functools import partial

from benchmarks import train
from benchmarks.timing import Benchmark, Work, run_python
from jaxgpt.devices import start_devices
from jaxgpt.mesh import make_mesh
from jaxgpt.stages.pretrain import PretrainConfig

XL = PretrainConfig(preset="gpt2-xl", tokenizer="gpt2", dropout=0.0, batch_size=1)


def benchmarks() -> list[Benchmark]:
    return [
        _process("startup-import", "-c", "import jaxgpt"),
        _process("startup-help", "train.py", "--help"),
        _program("startup-compile-124m", train.GPT2),
        _program("startup-compile-xl", XL),
    ]


def _process(name: str, *command: str) -> Benchmark:
    return Benchmark(name, f"`python {' '.join(command)}`", "process", 1, {"jaxgpt": partial(_run, *command)})


def _run(*command: str) -> Work:
    return lambda: run_python(*command)


def _program(name: str, flags: PretrainConfig) -> Benchmark:
    what = f"compiling the train step of {train.describe(flags)}"
    return Benchmark(name, what, "program", 1, {"jaxgpt": partial(_compile, flags)})


def _compile(flags: PretrainConfig) -> Work:
    start_devices("cpu")
    stage, trainer = train.begin(flags)
    batch = trainer.put(stage.batch(0))

    def work() -> None:
        trainer = stage.trainer(make_mesh())
        trainer.step.jitted.lower(trainer.abstract, batch).compile()

    return work
