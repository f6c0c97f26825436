"""`python -m recipes.scaling`: models of five sizes, each for its own compute, and a power law through their losses.

Each reads 20 tokens a parameter (Hoffmann et al. 2022), so compute C = 6 N D grows with the square of the size. The
learning rate falls with the size as in Kaplan et al. 2020, appendix D.6. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt.checks import whole
from jaxgpt.cli import entry
from jaxgpt.command_line import command, parse
from jaxgpt.errors import RunError
from jaxgpt.files import write_json
from jaxgpt.flags import PathName, flag
from jaxgpt.model.atlas import count

PRESET = "shakespeare-char-cpu"
PROGRAM = "python -m recipes.scaling"
# Layers and width of each model; a head has 16 dimensions.
LADDER = ((2, 16), (2, 32), (3, 48), (4, 64), (4, 80))
BATCH_SIZE, BLOCK_SIZE = 12, 64
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True)
class Options:
    """What the recipe is asked."""

    out_dir: PathName = flag("out-scaling", "folder of the runs, scaling.json and scaling.png")
    dataset: PathName = flag("plays", "what the models read, as --dataset of train.py; by characters")
    max_iters: int | None = flag(None, "updates of a run at most, for a trial; none: 20 tokens a parameter")

    def __post_init__(self) -> None:
        if self.max_iters is not None:
            whole("--max_iters", self.max_iters, 1)


@dataclass(frozen=True)
class Run:
    """One model of the ladder.

    Attributes:
        parameters: N, all of them.
        tokens: D, that it has read.
        compute: C = 6 N D.
        loss: on the validation text, in nats a token.
    """

    parameters: int
    tokens: int
    compute: float
    loss: float


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train the ladder, fit loss over compute, and write both as JSON and as a picture."""
    options = parse(Options, argv, prog=PROGRAM, description="Loss over compute, of five small models.")
    folder = Path(options.out_dir)
    runs = [train(options, folder, layers, width) for layers, width in LADDER]
    from jaxgpt.inspect import fit_power_law, plot_scaling  # with matplotlib

    losses = [run.loss for run in runs]
    law = fit_power_law([run.compute for run in runs], losses)
    write_json(folder / "scaling.json", {"runs": [asdict(run) for run in runs], "law": asdict(law)})
    figure = plot_scaling([run.parameters for run in runs], [run.tokens for run in runs], losses)
    figure.savefig(folder / "scaling.png", dpi=120)
    print(f"\n{'parameters N':>14}{'tokens D':>14}{'6 N D':>12}{'loss':>8}")
    for run in runs:
        print(f"{run.parameters:>14,}{run.tokens:>14,}{run.compute:>12.2e}{run.loss:>8.3f}")
    print(f"loss falls as C^-{law.exponent:.4f}, standard error {law.standard_error:.4f}, of {len(runs)} runs")
    print(f"{folder / 'scaling.json'}, {folder / 'scaling.png'}")


def train(options: Options, folder: Path, layers: int, width: int) -> Run:
    """Train one model, or go on with it, and return what came of it.

    Raises:
        RunError: it was stopped.
    """
    from jaxgpt.data import load_corpus
    from jaxgpt.model.config import GPTConfig
    from jaxgpt.stages import Pretrain
    from jaxgpt.train.metrics import read_rows

    vocab = load_corpus(options.dataset, "char", block_size=BLOCK_SIZE).tokenizer.vocab_size
    shape: dict[str, Any] = {"n_layer": layers, "n_embd": width, "n_head": width // 16}
    like = GPTConfig.preset(PRESET)
    size = count(replace(like, vocab_size=vocab, n_positions=BLOCK_SIZE, **shape))["total"]
    steps = math.ceil(TOKENS_PER_PARAMETER * size / (BATCH_SIZE * BLOCK_SIZE))
    steps = min(steps, options.max_iters or steps)
    print(f"\n== {size:,} parameters, {steps:,} updates", flush=True)
    run = folder / f"{layers}x{width}"
    Pretrain(
        init_from="auto", dataset=options.dataset, tokenizer="char", preset=PRESET, **shape, block_size=BLOCK_SIZE,
        batch_size=BATCH_SIZE, max_iters=steps, eval_interval=steps, eval_iters=100,
        save_interval=steps, log_interval=max(steps // 100, 1), learning_rate=0.003239 - 0.0001395 * math.log(size),
        tensorboard=False, sample_tokens=0,
    ).run(run)  # fmt: skip
    last = [row for row in read_rows(run / "metrics.jsonl") if row["split"] == "val"][-1]
    if last["step"] < steps:
        raise RunError(f"{run} was stopped at step {last['step']} of {steps}; the same command goes on from here")
    tokens = steps * BATCH_SIZE * BLOCK_SIZE
    return Run(size, tokens, 6.0 * size * tokens, last["loss"])


if __name__ == "__main__":
    entry.run("recipes.scaling")
