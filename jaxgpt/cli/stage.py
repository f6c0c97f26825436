"""What the stages after pretraining share: the model they begin with, their examples, and what of it is trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh

from jaxgpt.cli.run import Job, Record, refuse_differences
from jaxgpt.cli.sources import open_model
from jaxgpt.decode.engine import generate
from jaxgpt.devices import compute_dtype
from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import cut_padding
from jaxgpt.mesh import host_shard
from jaxgpt.model.atlas import Parameter, count, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.layers import GPT
from jaxgpt.model.lora import adapter_parameters, init_adapters, is_beside, merge
from jaxgpt.text.chat import ChatTemplate
from jaxgpt.text.examples import epoch_rows, eval_rows
from jaxgpt.text.records import split
from jaxgpt.text.tokenizers import Tokenizer, load_tokenizer
from jaxgpt.train.manifest import latest, sha256
from jaxgpt.train.metrics import plot
from jaxgpt.train.objectives import Objective, adapted
from jaxgpt.train.partial import trains
from jaxgpt.train.stages import StageConfig
from jaxgpt.train.task import Task
from jaxgpt.train.weights import BASE, load_params, save_params

FIXED = ("train_layers", "lora_rank", "lora_alpha", "lora_targets", "val_fraction", "block_size")
"""Flags of every stage that may not change when a run goes on."""
SHOWN = 3
"""Prompts whose answers are shown at the end."""
ANSWER = 200
SEPARATOR = "---------------"
Drawn = Literal["adapters", "head", "vocabulary"]
"""What may be drawn when a stage begins."""
_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Start:
    """The model that a stage begins with.

    Attributes:
        name: where it comes from.
        config, tokenizer: the model's.
        params: its weights at step 0; None where a run goes on whose checkpoints have all of them.
    """

    name: str
    config: GPTConfig
    tokenizer: Tokenizer
    params: Any | None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that goes along with the tokenizer."""
        return ChatTemplate.of(self.tokenizer)


def open_start(flags: StageConfig, folder: Path, record: Record | None, *, fixed: Sequence[str] = ()) -> Start:
    """Return the model to begin with, or that of a run that goes on.

    Args:
        flags: the stage's.
        folder: the run's.
        record: of the run that goes on, None for a new one.
        fixed: flags of the stage that may not change when a run goes on.
    """
    if record is None:
        config, params, tokenizer = open_model(
            flags.source, allow_pickle=flags.allow_pickle, ignore_config_change=flags.ignore_config_change
        )
        config, params = cut_padding(config, params, tokenizer.vocab_size)
        return Start(flags.source, flags.fine_tuned(config), tokenizer, params)
    begun, config = record["flags"], record["model"]
    fixed = (*FIXED, *fixed)
    refuse_differences(folder, {name: begun.get(name) for name in fixed}, {n: getattr(flags, n) for n in fixed})
    refuse_differences(folder, config, flags.model(config))
    params = None
    if record.get("base"):
        if not (folder / BASE).is_dir():
            raise UsageError(f"{folder / BASE} is missing; without what the run began with it can't go on")
        _, params = load_params(folder / BASE, ignore_config_change=flags.ignore_config_change)
    return Start(record["begun_from"], config, load_tokenizer(folder), params)


def key_of(seed: int, drawn: Drawn) -> Array:
    """Return the key of what is drawn when a stage begins: no other draw's, and no update's.

    An update folds its number, counted from 0 up, into the seed's key, for dropout. These numbers come from the top.
    """
    return jax.random.fold_in(jax.random.key(seed), 2**32 - 1 - get_args(Drawn).index(drawn))


def with_labels(start: Start, labels: tuple[str, ...], *, seed: int, zero: bool = False) -> Start:
    """Return the model with a head for these labels: its own where it has one for them, else a new one.

    Args:
        start: the model.
        labels: their names.
        seed: of a new head.
        zero: a new head's scores are all 0, as values should be that are to be learnt.
    """
    if start.params is None or set(start.config.labels or ()) == set(labels):
        return start
    if start.config.labels is not None:
        print(f"note: the head for {', '.join(start.config.labels)} makes way for one for {', '.join(labels)}")
    shape = (len(labels), start.config.n_embd)
    deviation = 0.0 if zero else start.config.initializer_range
    score = deviation * jax.random.normal(key_of(seed, "head"), shape)
    return replace(start, config=replace(start.config, labels=labels), params={**start.params, "score": score})


def without_labels(start: Start) -> Start:
    """Return the model without a head that scores."""
    params = start.params and {name: leaf for name, leaf in start.params.items() if name != "score"}
    return replace(start, config=replace(start.config, labels=None), params=params)


def read_examples(flags: StageConfig, read: Callable[[str], Sequence[_Any]]) -> tuple[list[_Any], list[_Any]]:
    """Return the examples to train on and those to validate on."""
    assert flags.dataset is not None
    if flags.val_dataset is not None:
        return list(read(flags.dataset)), list(read(flags.val_dataset))
    return split(read(flags.dataset), flags.val_fraction or 0.1, seed=0)


def room(flags: StageConfig, config: GPTConfig) -> int:
    """Return how many tokens an example may have."""
    if flags.block_size is not None and flags.block_size > config.n_positions:
        raise UsageError(f"block_size {flags.block_size} is longer than the model's context, {config.n_positions}")
    return flags.block_size or config.n_positions


def model_of(flags: StageConfig, config: GPTConfig) -> GPT:
    """Return the module."""
    return GPT(config, jnp.dtype(compute_dtype(flags.dtype)), flags.remat)


@dataclass(frozen=True)
class Examples:
    """A stage's examples as batches; part 0 is to train on, part 1 to validate on.

    Attributes:
        sizes: how many examples there are in each part.
        batches: for each part, a function from the numbers of examples to a batch of them.
    """

    sizes: tuple[int, int]
    batches: tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]

    def in_order(self, part: int, batch_size: int) -> Iterator[Any]:
        """Yield all examples of a part, in batches; the last is filled up with some of weight 0."""
        for i in range(-(-self.sizes[part] // batch_size)):
            yield self.batches[part](eval_rows(self.sizes[part], index=i, batch_size=batch_size))


def task(
    flags: StageConfig, start: Start, examples: Examples, objective: Callable[[GPT], Objective], mesh: Mesh
) -> Task:
    """Return what the loop does: `objective` of the model, on examples drawn epoch by epoch."""
    part = host_shard(mesh)
    rows = flags.batch_size * flags.gradient_accumulation_steps
    (size, val_size), (draw, take) = examples.sizes, examples.batches
    return Task(
        **trained_fields(flags, start, objective(model_of(flags, start.config))),
        batches=lambda step: draw(epoch_rows(size, seed=flags.seed, step=step, batch_size=rows, **part)),
        evaluation=lambda i: take(eval_rows(val_size, index=i, batch_size=flags.batch_size, **part)),
        evaluations=min(-(-val_size // flags.batch_size), flags.eval_iters),
    )


def trained_fields(flags: StageConfig, start: Start, objective: Objective) -> dict[str, Any]:
    """Return the fields of a task that say what is trained: by an objective of the model, whose adapters are merged."""
    rows, moves = trained(flags, start.config)
    return {
        "config": start.config,
        "parameters": rows,
        "begin": lambda _: begin(flags, start),
        "moves": moves,
        "objective": objective if flags.lora is None else adapted(objective, flags.lora),
    }


def trained(flags: StageConfig, config: GPTConfig) -> tuple[tuple[Parameter, ...], Callable[[tuple[str, ...]], bool]]:
    """Return all parameters, and which are trained: all, those of some layers, or adapters and a head beside them."""
    if flags.lora is None:
        return tuple(parameters(config)), trains(config, flags.train_layers)
    rows = (*parameters(config), *adapter_parameters(config, flags.lora))
    return rows, is_beside


def begin(flags: StageConfig, start: Start) -> Any:
    """Return the parameters at step 0, new adapters among them."""
    if flags.lora is None:
        return start.params
    adapters = init_adapters(start.config, flags.lora, key_of(flags.seed, "adapters"))
    return unflatten_dict({**flatten_dict(start.params), **flatten_dict(adapters)})


def job(
    flags: StageConfig,
    start: Start,
    *,
    about: Sequence[str],
    task: Callable[[Mesh], Task],
    show: Callable[[Any], None],
    files: Callable[[Path], None] = lambda folder: None,
    keeps_base: bool = False,
    data: Mapping[str, str] | None = None,
) -> Job:
    """Return a stage's job.

    Args:
        flags, start: the stage's.
        about: lines that say on what it is trained.
        task: see `Job`.
        show: the model's parameters at the end → what is printed.
        files: see `Job`.
        keeps_base: the run needs the weights that it began with, although all are trained.
        data: hashes of what else decides what is learnt.
    """
    folder, lora = Path(flags.out_dir), flags.lora
    keeps_base = keeps_base or lora is not None or flags.train_layers != "all"
    if keeps_base and jax.process_count() > 1:
        raise UsageError("--distributed: only where all weights are trained; parts, adapters and ppo take one process")

    def write(folder: Path) -> None:
        if keeps_base:
            save_params(folder / BASE, start.config, start.params)
            start.tokenizer.save(folder / BASE)
        files(folder)

    def show_best(params: Any) -> None:
        """Show the model that whoever opens the folder gets."""
        progress = latest(folder, ())  # what is then read of it is verified
        if progress is not None and progress.best_step not in (None, progress.step):
            print(f"best:  step {progress.best_step}, by the loss on validation; what follows is its")
            params = load_params(folder, ignore_config_change=flags.ignore_config_change)[1]
        elif lora is not None:
            params = merge(params, lora)
        show(params)

    return Job(
        config=start.config,
        tokenizer=start.tokenizer,
        data={**hashes(flags, start), **(data or {})},
        about=(*about, *trained_share(flags, start.config)),
        task=task,
        show=show_best,
        files=write,
        record={"begun_from": start.name, "base": keeps_base, "lora": None if lora is None else asdict(lora)},
    )


def hashes(flags: StageConfig, start: Start) -> dict[str, str]:
    """Return hashes of the files with the examples, and of what makes tokens of them."""
    files = {name: getattr(flags, name) for name in ("dataset", "val_dataset")}
    template = "" if start.template is None else start.template.source
    return {
        **{name: sha256(Path(file)) for name, file in files.items() if file is not None},
        "tokenizer": start.tokenizer.fingerprint,
        "template": hashlib.sha256(template.encode()).hexdigest(),
    }


def trained_share(flags: StageConfig, config: GPTConfig) -> list[str]:
    """Return a line that says how many parameters are trained, where not all are."""
    rows, moves = trained(flags, config)
    moving = sum(math.prod(row.shape) for row in rows if moves(row.path))
    total = count(config)["total"]
    return [] if moving == total else [f"train: {moving:,} parameters, {moving / total:.2%} of the model's"]


def show_answers(flags: StageConfig, folder: Path, start: Start, prompts: Sequence[Sequence[int]], params: Any) -> None:
    """Print the model's likeliest answers to prompts, and keep them in the run's folder."""
    tokenizer, config = start.tokenizer, start.config
    shown = []
    for prompt in prompts:
        count = config.n_positions - len(prompt)
        [ids] = generate(config, params, [prompt], max_new_tokens=min(count, ANSWER), vocab_size=tokenizer.vocab_size)
        shown.append(f"{tokenizer.decode(prompt)}{tokenizer.decode(ids)}")
    if jax.process_index() == 0 and shown:
        text, samples = f"\n{SEPARATOR}\n".join(shown), folder / "samples"
        samples.mkdir(exist_ok=True)
        (samples / f"{flags.max_iters}.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n")


def show_curve(folder: Path, after: str) -> None:
    """Draw the run's curve, and say what can be done next."""
    if jax.process_index() == 0:
        print(f"curve: {plot(folder)}\nnext:  {after}")
