"""Low-rank adapters as functions on parameter trees: the model never hears of them.

Adapters are leaves `lora_a` and `lora_b` beside the kernel that they adapt. Training moves these and leaves the rest
frozen; `merge` makes of the whole tree the plain model's, at the start of every step and once at the end.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Float

from jaxgpt.model.atlas import Parameter, axes, parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.lora_config import ADAPTABLE, LoRA

A, B, KERNEL = "lora_a", "lora_b", "kernel"


def merge(params: Any, lora: LoRA, key: Array | None = None) -> Any:
    """Return the plain model's tree: W + alpha/rank · A B in f32 for each adapted W, and no adapters.

    Dropout differs from PEFT's. There each token's input to an adapter is dropped on its own; merged weights know no
    tokens, so here one mask of input features, which are the rows of A, holds for all tokens of the call.

    Args:
        params: a tree with a model's parameters and adapters.
        lora: what the adapters are.
        key: of the dropout; without one nothing is dropped.
    """
    leaves: dict[Any, Any] = flatten_dict(params)
    for i, module in enumerate(sorted(path[:-1] for path in leaves if path[-1] == A)):
        a, b = leaves.pop((*module, A)), leaves.pop((*module, B))
        if key is not None and lora.dropout > 0:
            a = drop_features(a, lora.dropout, jax.random.fold_in(key, i))
        kernel = leaves[*module, KERNEL]
        leaves[*module, KERNEL] = (kernel + lora.scale * product(a, b)).astype(kernel.dtype)
    return unflatten_dict(leaves)


def product(a: Float[Array, "I R"], b: Float[Array, "R O"]) -> Float[Array, "I O"]:
    """Return A B in f32, whatever precision products have by default on this device."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def drop_features(a: Float[Array, "I R"], rate: float, key: Array) -> Float[Array, "I R"]:
    """Return A as it acts on an input whose features are dropped at this rate."""
    kept = jax.random.bernoulli(key, 1 - rate, (len(a), 1))
    return jnp.where(kept, a / (1 - rate), 0)


def init_adapters(config: GPTConfig, lora: LoRA, key: Array) -> Any:
    """Return a tree of new adapters, which change nothing yet: A uniform within 1/sqrt(fan_in), as in PEFT; B zero."""
    numbers = {parameter.path: i for i, parameter in enumerate(adapter_parameters(config, lora))}

    def init(parameter: Parameter) -> Array:
        if parameter.path[-1] == B:
            return jnp.zeros(parameter.shape, jnp.float32)
        bound, own = parameter.shape[0] ** -0.5, jax.random.fold_in(key, numbers[parameter.path])
        return jax.random.uniform(own, parameter.shape, jnp.float32, -bound, bound)

    return tree_of(adapter_parameters(config, lora), init)


def add_adapters(config: GPTConfig, params: Any, lora: LoRA, key: Array) -> Any:
    """Return a tree with the leaves of a model and new adapters."""
    adapters = init_adapters(config, lora, key)
    return unflatten_dict({**flatten_dict(params), **flatten_dict(adapters)})


def adapter_parameters(config: GPTConfig, lora: LoRA) -> tuple[Parameter, ...]:
    """Return rows of the atlas for adapters, two for each matrix, in the matrices' order.

    HF's names are PEFT's inside a `GPT2Model`; there both matrices are transposed.
    """
    rows = {ADAPTABLE[module] for module in lora.modules}
    adapted = (parameter for parameter in parameters(config) if parameter.row in rows)
    return tuple(half for parameter in adapted for half in _halves(parameter, lora.rank))


def is_adapter(path: tuple[str, ...]) -> bool:
    """Return whether an adapter's leaf lies at this path."""
    return path[-1] in (A, B)


def is_beside(path: tuple[str, ...]) -> bool:
    """Return whether a leaf is trained where adapters are: an adapter's, or the head that scores."""
    return is_adapter(path) or path == ("score",)


def without_adapters(params: Any) -> Any:
    """Return the tree of the model as it was before adapters came."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if not is_adapter(path)})


def _halves(adapted: Parameter, rank: int) -> tuple[Parameter, Parameter]:
    """Return the rows of A and B for a matrix's."""
    fan_in, fan_out = adapted.shape
    into, out_of = axes(adapted.row.pattern)

    def half(name: str, hf_name: str, pattern: str, shape: tuple[int, int]) -> Parameter:
        row, hf_leaf = adapted.row, f"{hf_name}.weight"
        own = replace(
            row, path=row.path.replace(KERNEL, name), hf_name=row.hf_name.replace("weight", hf_leaf), pattern=pattern
        )
        return Parameter(own, (*adapted.path[:-1], name), adapted.hf_name.replace("weight", hf_leaf), shape)

    return half(A, "lora_A", f"{into} R", (fan_in, rank)), half(B, "lora_B", f"R {out_of}", (rank, fan_out))
