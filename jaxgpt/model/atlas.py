"""The atlas: one row per parameter, from which import, export, sharding and weight decay all follow.

A row says where a parameter lies in our tree, what HF calls it, its shape in the package's alphabet, and what
kind of thing it is. A pattern such as "D (3 H K)" gives the shape on both sides: HF's Conv1D stores (in, out), as
Flax kernels do, so nothing is transposed on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxgpt import checks
from jaxgpt.errors import UsageError, listed
from jaxgpt.model.config import GPTConfig

Part = Literal["embeddings", "attention", "feed-forward", "norms", "scores"]
PARTS = get_args(Part)


@dataclass(frozen=True)
class Row:
    """One role in the model; `{i}` stands for the layer's index.

    Attributes:
        path: place in the parameter tree, joined by slashes.
        hf_name: name in a `GPT2Model`; models with heads put "transformer." before all but the heads'.
        pattern: the shape, one word or bracket per axis.
        part: for the table of parameters.
        decay: whether AdamW shrinks it. Matrices decay; biases and norms do not.
        exists: whether a config has it.
    """

    path: str
    hf_name: str
    pattern: str
    part: Part
    decay: bool = False
    exists: Callable[[GPTConfig], bool] = lambda config: True


@dataclass(frozen=True)
class Parameter:
    """A row made concrete for one config and one layer.

    Attributes:
        row: the row it comes from.
        path: keys in the parameter tree.
        hf_name: name in a `GPT2Model`.
        shape: sizes of the axes, the same on both sides.
    """

    row: Row
    path: tuple[str, ...]
    hf_name: str
    shape: tuple[int, ...]


def _biased(config: GPTConfig) -> bool:
    return config.bias


def _pre_norm(config: GPTConfig) -> bool:
    return config.norm_position == "pre"


ROWS = (
    Row("wte/embedding", "wte.weight", "V D", "embeddings", decay=True),
    Row("wpe/embedding", "wpe.weight", "P D", "embeddings", True, lambda c: c.position_embedding == "learned"),
    Row("h_{i}/ln_1/scale", "h.{i}.ln_1.weight", "D", "norms"),
    Row("h_{i}/ln_1/bias", "h.{i}.ln_1.bias", "D", "norms", exists=_biased),
    Row("h_{i}/attn/c_attn/kernel", "h.{i}.attn.c_attn.weight", "D (3 H K)", "attention", decay=True),
    Row("h_{i}/attn/c_attn/bias", "h.{i}.attn.c_attn.bias", "(3 H K)", "attention", exists=_biased),
    Row("h_{i}/attn/c_proj/kernel", "h.{i}.attn.c_proj.weight", "(H K) D", "attention", decay=True),
    Row("h_{i}/attn/c_proj/bias", "h.{i}.attn.c_proj.bias", "D", "attention", exists=_biased),
    Row("h_{i}/ln_2/scale", "h.{i}.ln_2.weight", "D", "norms"),
    Row("h_{i}/ln_2/bias", "h.{i}.ln_2.bias", "D", "norms", exists=_biased),
    Row("h_{i}/mlp/c_fc/kernel", "h.{i}.mlp.c_fc.weight", "D F", "feed-forward", decay=True),
    Row("h_{i}/mlp/c_fc/bias", "h.{i}.mlp.c_fc.bias", "F", "feed-forward", exists=_biased),
    Row("h_{i}/mlp/c_proj/kernel", "h.{i}.mlp.c_proj.weight", "F D", "feed-forward", decay=True),
    Row("h_{i}/mlp/c_proj/bias", "h.{i}.mlp.c_proj.bias", "D", "feed-forward", exists=_biased),
    Row("ln_f/scale", "ln_f.weight", "D", "norms", exists=_pre_norm),
    Row("ln_f/bias", "ln_f.bias", "D", "norms", exists=lambda c: c.bias and _pre_norm(c)),
    Row("lm_head/embedding", "lm_head.weight", "V D", "embeddings", True, lambda c: not c.tie_word_embeddings),
    Row("score", "score.weight", "N D", "scores", True, lambda c: c.labels is not None),
)


def parameters(config: GPTConfig) -> Iterator[Parameter]:
    """Yield every parameter of a model, in HF's order."""
    sizes = {
        "V": config.vocab_size,
        "P": config.n_positions,
        "D": config.n_embd,
        "F": config.inner_dim,
        "(H K)": config.n_embd,
        "(3 H K)": 3 * config.n_embd,
        "N": len(config.labels or ()),
    }
    rows = [row for row in ROWS if row.exists(config)]
    per_layer = [row for row in rows if "{i}" in row.path]
    first = rows.index(per_layer[0])
    expanded = [(row, 0) for row in rows[:first]]
    expanded += [(row, i) for i in range(config.n_layer) for row in per_layer]
    expanded += [(row, 0) for row in rows[first + len(per_layer) :]]
    for row, i in expanded:
        shape = tuple(sizes[axis] for axis in axes(row.pattern))
        yield Parameter(row, tuple(row.path.format(i=i).split("/")), row.hf_name.format(i=i), shape)


def axes(pattern: str) -> tuple[str, ...]:
    """Split a pattern into its axes: "D (3 H K)" gives ("D", "(3 H K)")."""
    found, rest = [], pattern
    while rest:
        axis, _, rest = (rest[1:].partition(")")) if rest.startswith("(") else rest.partition(" ")
        found.append(f"({axis})" if " " in axis else axis)
        rest = rest.strip()
    return tuple(found)


def map_parameters(config: GPTConfig, function: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Return a tree shaped like the model's parameters, with `function` of each row as its leaves."""
    return tree_of(parameters(config), function)


def tree_of(parameters: Iterable[Parameter], function: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Return a tree with `function` of each parameter at its path."""
    tree: dict[str, Any] = {}
    for parameter in parameters:
        *folders, leaf = parameter.path
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = function(parameter)
    return tree


def leaves_of(
    params: object, parameters: Iterable[Parameter], *, quantized: type | tuple[()] = ()
) -> dict[tuple[str, ...], Any]:
    """Return a tree's leaves by their paths, one for each of the parameters and none left over.

    Args:
        params: nested dicts of arrays of floats.
        parameters: what they must be.
        quantized: a type that a matrix may be instead of an array, stored by outputs; its own function is to fit.

    Raises:
        UsageError: they do not fit; the message has the first few differences.
    """
    leaves, shapes = dict(walk(params)), {parameter.path: parameter.shape for parameter in parameters}
    problems = listed("missing", {"/".join(path) for path in shapes.keys() - leaves.keys()})
    problems += listed("not of this config", {"/".join(path) for path in leaves.keys() - shapes.keys()})
    for path in shapes.keys() & leaves.keys():
        leaf = leaves[path]
        by_outputs = isinstance(leaf, quantized)
        shape = shapes[path][::-1] if by_outputs and path[-1] == "kernel" else shapes[path]
        if not by_outputs and not checks.is_floating(leaf):
            problems.append(f"{'/'.join(path)} is {checks.shown(leaf)}; it must be an array of floats")
        elif leaf.shape != shape:
            problems.append(f"{'/'.join(path)} has shape {leaf.shape}; the config makes it {shape}")
    if problems:
        raise UsageError(f"the parameters do not fit the config: {'; '.join(sorted(problems)[:5])}")
    return leaves


def walk(params: object, *folders: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the leaves of a tree of parameters, arrays or not, with their paths."""
    if not isinstance(params, Mapping):
        raise checks.refusal("params", params, "a model's parameters, nested dicts as load_pretrained gives them")
    for name, value in params.items():
        path = (*folders, str(name))
        yield from walk(value, *path) if isinstance(value, Mapping) else [(path, value)]


def count(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters of each part that the model has, and under "total" of all."""
    parts: dict[str, int] = {}
    for parameter in parameters(config):
        parts[parameter.row.part] = parts.get(parameter.row.part, 0) + math.prod(parameter.shape)
    return {**{part: parts[part] for part in PARTS if part in parts}, "total": sum(parts.values())}
