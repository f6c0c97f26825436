"""Adapters in and out: a folder as PEFT writes it ⇄ (LoRA, tree of adapters), by the atlas."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgpt import checks
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.files import read_json
from jaxgpt.hf.convert import ADAPTERS as SETTINGS
from jaxgpt.hf.convert import full_name
from jaxgpt.hf.files import open_safetensors, replace_files, writing
from jaxgpt.hf.tensors import by_name, fit, read_values, transposed
from jaxgpt.model.atlas import Parameter, leaves_of, parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.lora import adapter_parameters, is_adapter
from jaxgpt.model.lora_config import ADAPTABLE, TARGETS, LoRA, ends_with

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SCORE = "score"
HONOURED = {"r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save"}
# Each with PEFT's default first. Other initialisations also change the weights that are adapted.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM", "SEQ_CLS"),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# Conv1D settles fan_in_fan_out; the others say where adapters came from, or qualify settings that are off.
IRRELEVANT = frozenset(
    """
    auto_mapping base_model_name_or_path fan_in_fan_out inference_mode layers_pattern loftq_config megatron_core
    peft_version qalora_group_size revision eva_config
    """.split()
)


def save_adapters(
    directory: str | os.PathLike[str],
    config: GPTConfig,
    lora: LoRA,
    adapters: Mapping[str, Any],
    base_model_name: str | None = None,
) -> None:
    """Write a folder that `PeftModel.from_pretrained` of PEFT opens on the model that was adapted.

    Args:
        directory: made if it does not exist.
        config: the adapted model's.
        lora: what the adapters are.
        adapters: their tree, written in its dtype. Where the config has labels, `score` is in it too: PEFT saves the
            head of a classifier with the adapters.
        base_model_name: the adapted model's name or folder, for those who look for it.

    Raises:
        UsageError: the adapters do not fit the config, HF's GPT-2 has no such architecture, or the folder can't be
            made.
        RunError: writing failed.
    """
    folder, scores = Path(directory), config.labels is not None
    config.to_hf()  # raises where there is no such model for PEFT
    saved = _saved(config, lora, scores=scores)
    leaves = leaves_of(adapters, saved.values())
    tensors = {PREFIX + full_name(name): _turned(p, np.asarray(leaves[p.path])) for name, p in saved.items()}
    settings = {
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": True,  # how Conv1D, and so the base, stores matrices
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": [SCORE] if scores else None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": list(lora.targets),
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
    }
    with writing(folder):
        replace_files(folder / WEIGHTS, tensors, folder / SETTINGS, settings)


def load_adapters(directory: str | os.PathLike[str], config: GPTConfig) -> tuple[LoRA, dict[str, Any]]:
    """Read adapters that PEFT or `save_adapters` wrote, for a model with this config.

    Every setting is honoured, known to be irrelevant to the adapted model's function, or refused by name.

    Returns:
        What the adapters are, its targets one by one, and their tree in f32; with `score` in it where the head was
        saved with them.

    Raises:
        UsageError: files that are missing, damaged, or do not fit the config or one another; the message names them.
    """
    settings, weights = Path(directory) / SETTINGS, Path(directory) / WEIGHTS
    values = read_json(settings)
    try:
        lora, scores = _read_lora(values, config), SCORE in (values.get("modules_to_save") or ())
        if scores and config.labels is None:
            raise UsageError(f"modules_to_save has {SCORE}, but the model's config has no labels")
        saved = _saved(config, lora, scores=scores)
    except UsageError as error:
        raise UsageError(f"{settings}: {error}") from None
    if not weights.exists():
        raise UsageError(f"{weights}: no such file; adapters are read from safetensors only")
    tensors = open_safetensors(weights)
    try:
        found = by_name(tensors, lambda name: name.removeprefix(PREFIX).removeprefix("transformer."))
        fit(found, {name: p.shape[::-1] if is_adapter(p.path) else p.shape for name, p in saved.items()})
        turned = {name: transposed(found[name]) if is_adapter(p.path) else found[name] for name, p in saved.items()}
        leaves = read_values(turned, jnp.float32)
    except UsageError as error:
        raise UsageError(f"{weights}: {error}") from None
    return lora, tree_of(saved.values(), lambda p: leaves[p.hf_name])


def _saved(config: GPTConfig, lora: LoRA, *, scores: bool) -> dict[str, Parameter]:
    """Return, by their names in a `GPT2Model`, the parameters that lie in PEFT's file."""
    head = (parameter for parameter in parameters(config) if scores and parameter.path == (SCORE,))
    return {parameter.hf_name: parameter for parameter in (*adapter_parameters(config, lora), *head)}


def _turned(parameter: Parameter, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor as the other side has it: PEFT's A is (R, fan_in), its B (fan_out, R)."""
    return np.ascontiguousarray(tensor.T) if is_adapter(parameter.path) else tensor


def _read_lora(values: Mapping[str, Any], config: GPTConfig) -> LoRA:
    """Return what an `adapter_config.json` asks for; PEFT's own defaults stand for what it leaves out."""
    for name, valid in REQUIRED.items():
        if values.get(name, valid[0]) not in valid:
            raise UsageError(f"{name} is {values[name]!r}; supported are {', '.join(map(repr, valid))}")
    for name, value in values.items():
        # A setting that is null, false or empty is off, as will be those that PEFT does not have yet.
        if value and name not in HONOURED | REQUIRED.keys() | IRRELEVANT:
            raise UsageError(f"{name} is {value!r}, which is not supported{did_you_mean(name, HONOURED)}")
    modules = values.get("modules_to_save") or []
    if not isinstance(modules, list) or any(name not in (SCORE, "classifier") for name in modules):
        raise UsageError(f"modules_to_save is {modules!r}; only {SCORE!r} can be saved with adapters")
    return LoRA(
        rank=values.get("r", 8),
        alpha=checks.real("lora_alpha", values.get("lora_alpha", 8), "a number"),
        dropout=values.get("lora_dropout", 0.0),
        targets=_read_targets(values.get("target_modules"), config),
    )


def _read_targets(names: object, config: GPTConfig) -> tuple[str, ...]:
    """Return the matrices that PEFT would adapt: those whose full names are, or end with, one of these."""
    if not isinstance(names, list) or not names:
        raise UsageError(f"target_modules is {names!r}; it must be a list of names")
    places = {f"transformer.h.{i}.{module}": module for i in range(config.n_layer) for module in ADAPTABLE}
    found: set[str] = set()
    for name in names:
        matched = {place for place in places if ends_with(place, str(name))}
        if not matched:
            raise UsageError(
                f"target_modules has {name!r}, which is no matrix of a layer; valid are {', '.join(TARGETS)}"
            )
        found |= matched
    layers = Counter(places[place] for place in found)
    for module, number in layers.items():
        if number < config.n_layer:
            raise UsageError(f"target_modules has {module} of {number} layers only; of all {config.n_layer} or of none")
    return tuple(module for module in ADAPTABLE if module in layers)
