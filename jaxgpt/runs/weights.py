"""A model as a run's folder holds it: read whole, whatever part of it was trained, and written without a run.

`open_model` opens one from wherever it is.

checkpoints/STEP/params/   what was trained: all weights, some layers, or adapters and a head
base/                      a folder of weights: all that the run began with, where checkpoints don't have them
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgpt import checks
from jaxgpt.commands import called
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.hf.convert import load_pretrained, with_tokenizer_size
from jaxgpt.hf.hub import locate
from jaxgpt.hosts import together
from jaxgpt.model.atlas import Parameter, parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.lora import adapter_parameters, merge
from jaxgpt.model.lora_config import LoRA
from jaxgpt.runs.folder import BASE, read_record, write_record
from jaxgpt.runs.manifest import WEIGHTS, Progress, Which, read_manifest, steps, undamaged
from jaxgpt.tokenizers.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer

LAST_STEP = 2**63 - 1
# The hub's models without an owner in their name; any other name without a slash is a folder that is not there.
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def open_model(
    source: str, *, checkpoint: Which | None = None, allow_pickle: bool = False, ignore_config_change: bool = False
) -> tuple[GPTConfig, Any, Tokenizer]:
    """Open a model by path or name.

    Args:
        source: a run's folder; another folder, or nanoGPT's ckpt.pt; or a name on the hub. What exists here comes
            first.
        checkpoint: which of a run's; None for the best.
        allow_pickle: see `load_pretrained`.
        ignore_config_change: see `load_params`.

    Returns:
        The config, the parameters, and the tokenizer.

    Raises:
        UsageError: there is no such model, or it is broken, or lacks ids that its tokenizer has.
    """
    config, params, tokenizer = _open(source, checkpoint, allow_pickle, ignore_config_change)
    check_tokenizer(source, config, tokenizer)
    return config, params, tokenizer


def check_source(source: str) -> None:
    """Make sure that there is such a path, or may be such a model on the hub.

    Raises:
        UsageError: there is neither.
    """
    if not Path(source).exists() and "/" not in source and source not in HUB_NAMES:
        raise UsageError(
            f"{source}: no such folder; {called('train')} writes one, and the hub's models are {', '.join(HUB_NAMES)} "
            f"or OWNER/NAME{did_you_mean(source, HUB_NAMES)}"
        )


def check_tokenizer(source: object, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Make sure that a model has a row for each id of its tokenizer; for others it would read NaN.

    Raises:
        UsageError: it has not.
    """
    if tokenizer.vocab_size > config.vocab_size:
        ids, rows = tokenizer.vocab_size, config.vocab_size
        raise UsageError(
            f"{source}: its tokenizer has {ids} ids, but its embedding table {rows} rows; added tokens need rows, too"
        )


def find_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer beside a model's weights, or GPT-2's for a vocabulary of its size; None if neither."""
    if any((folder / name).exists() for name in TOKENIZER_FILES):
        return load_tokenizer(folder)
    if vocab_size not in (50257, 50304):  # 50304 is how nanoGPT pads GPT-2's
        return None
    # Neither nanoGPT's checkpoints nor `save_pretrained` of a model bring a tokenizer.
    print(f"note: {folder} has no tokenizer; its {vocab_size} ids are taken as GPT-2's", file=sys.stderr)
    return load_tokenizer("gpt2")


def load_params(
    run: str | Path, which: Which = "best", *, dtype: Any = None, ignore_config_change: bool = False
) -> tuple[GPTConfig, Any]:
    """Read a model from a run's folder, with its adapters merged.

    Args:
        run: the folder.
        which: a step, "last", or "best" by validation loss (the last one if none was evaluated, or if that one is
            damaged, with a warning).
        dtype: of the parameters; None for as they are stored, f32.
        ignore_config_change: take config.json as it is, although it was changed since it was written.

    Returns:
        The config and the tree of parameters.

    Raises:
        UsageError: there is no such checkpoint, or it is damaged, or config.json is.
    """
    config, params, lora = load_trained(run, which, dtype=dtype, ignore_config_change=ignore_config_change)
    return config, params if lora is None else merge(params, lora)


def load_trained(
    run: str | Path, which: Which = "best", *, dtype: Any = None, ignore_config_change: bool = False
) -> tuple[GPTConfig, dict[str, Any], LoRA | None]:
    """Read a model as `load_params` does, but with its adapters in the tree; and what they are, None if it has none."""
    from jaxgpt.runs.checkpoint import stored_paths

    run = checks.path("run", run, "the path of a run's folder")
    dtype = None if dtype is None else checks.floating("dtype", dtype)
    record = read_record(run, ignore_change=ignore_config_change)
    config, lora = with_tokenizer_size(record["model"], run), _read_lora(run, record)
    folder = find_checkpoint(run, which)
    rows = (*parameters(config), *(() if lora is None else adapter_parameters(config, lora)))
    there = stored_paths(folder / "params") if record.get("base") else {row.path for row in rows}
    tree = _read(folder, [row for row in rows if row.path in there], dtype)
    if all(row.path in there for row in rows):
        return config, tree, lora
    _, base = load_params(run / BASE, dtype=dtype, ignore_config_change=ignore_config_change)
    leaves = {**flatten_dict(base), **flatten_dict(tree)}
    if missing := [row for row in rows if row.path not in leaves]:
        raise UsageError(f"{run / BASE} does not fit {folder}: neither has {'/'.join(missing[0].path)}")
    return config, unflatten_dict({row.path: leaves[row.path] for row in rows}), lora


def save_params(run: str | Path, config: GPTConfig, params: Any, **record: Any) -> None:
    """Write a model as a run's folder that holds weights only, as the checkpoint of step 0.

    All processes of a run have to call this together, each with whole arrays, which the first one writes.

    Args:
        run: the folder; earlier weights in it are set aside.
        config, params: the model.
        record: more entries of config.json, such as where the weights come from.
    """
    from jaxgpt.runs.checkpoint import Checkpoints

    run = Path(run)
    with together():
        if is_first():
            run.mkdir(parents=True, exist_ok=True)
            write_record(run, config, **record)
    checkpoints = Checkpoints(run)
    checkpoints.write(Progress(0), params=params if jax.process_count() == 1 else jax.device_get(params))
    checkpoints.wait()


def find_checkpoint(run: Path, which: Which) -> Path:
    """Return the folder of a checkpoint whose weights are undamaged; the moments beside them are not looked at."""
    folder = (run / "checkpoints").resolve()  # orbax needs an absolute path
    if not isinstance(which, str) or which not in ("best", "last"):
        which = checks.whole("which checkpoint", which, 0, LAST_STEP, "a step, 'best' or 'last'")
        if not (folder / str(which)).is_dir():
            raise UsageError(f"{run} has no checkpoint of step {which}; there are {sorted(steps(run))}")
        read_manifest(folder / str(which), WEIGHTS)
        return folder / str(which)
    for step in sorted(steps(run), reverse=True):
        if (progress := undamaged(folder / str(step), ())) is None:
            continue
        best = step if which == "last" or progress.best_step is None else progress.best_step
        instead = f"the newest, of step {step}, takes the place of the best"
        if best != step and undamaged(folder / str(best), WEIGHTS, instead):
            return folder / str(best)
        if undamaged(folder / str(step), WEIGHTS):
            return folder / str(step)
    raise UsageError(f"every checkpoint in {run} is damaged" if steps(run) else f"{run} holds no checkpoint")


def _read(folder: Path, rows: list[Parameter], dtype: Any) -> dict[str, Any]:
    from jaxgpt.runs.checkpoint import read_items

    device = jax.numpy.zeros(()).sharding  # where arrays are made; see `in_host_memory`
    like = tree_of(rows, lambda p: jax.ShapeDtypeStruct(p.shape, dtype or jax.numpy.float32, sharding=device))
    return read_items(folder, params=like)["params"]


def _read_lora(run: Path, record: dict[str, Any]) -> LoRA | None:
    if (fields := record.get("lora")) is None:
        return None
    try:
        return LoRA(**{**fields, "targets": tuple(fields["targets"])})
    except (TypeError, KeyError, UsageError) as error:
        raise UsageError(f"{run / 'config.json'}: lora: {error}") from None


def _open(
    source: str, checkpoint: Which | None, allow_pickle: bool, ignore_config_change: bool
) -> tuple[GPTConfig, Any, Tokenizer]:
    path = Path(source)
    if (path / "checkpoints").is_dir():
        which = "best" if checkpoint is None else checkpoint
        return *load_params(path, which, ignore_config_change=ignore_config_change), load_tokenizer(path)
    if checkpoint is not None:
        raise UsageError(f"--checkpoint {checkpoint}: only of a run's folder, and {source} is none")
    check_source(source)
    path = locate(source, revision=None, allow_pickle=allow_pickle)
    config, params = load_pretrained(path, allow_pickle=allow_pickle)
    folder = path if path.is_dir() else path.parent
    # Of a folder without a tokenizer, `load_tokenizer` says what it should hold.
    return config, params, find_tokenizer(folder, config.vocab_size) or load_tokenizer(folder)
