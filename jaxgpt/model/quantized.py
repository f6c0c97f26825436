"""Matrices as decoding reads them: stored by outputs, as floats or as integers of 8 or 4 bits with scales.

Activations stay floats, but for "w8a8", where what a matrix is multiplied with is rounded to 8 bits, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Num

from jaxgpt import checks
from jaxgpt.devices import platform
from jaxgpt.errors import UsageError
from jaxgpt.flags import Quantize
from jaxgpt.model.atlas import leaves_of, parameters, walk
from jaxgpt.model.config import GPTConfig
from jaxgpt.parallel import inside, whole

Kind = Quantize

# Inputs that share a scale at 4 bits, of which one large weight would else cost a whole row its digits.
GROUP = 64

# Rows up to which a CPU multiplies and sums; see `DecodingMatrix.product`.
MOST_ROWS = 32


@flax.struct.dataclass
class DecodingMatrix:
    """A matrix of O outputs and I inputs: in the model's parameters it stands for a kernel (I, O) or a table (V, D).

    Attributes:
        values: (O, I) floats or int8, or (O, I/2) uint8: two integers of 4 bits each, less 8, in a byte. The low bits
            are the first half of the inputs. XLA:CPU would give each of its own int4 a byte.
        scale: (O, G) factors of the integers, one for each of G groups of neighbouring inputs; None for floats.
        round_inputs: whether a product rounds its input to 8 bits as well, each row with a scale of its own.
    """

    values: Num[Array, "O J"]
    scale: Float[Array, "O G"] | None = None
    round_inputs: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        outputs, columns = self.values.shape
        return outputs, 2 * columns if self.values.dtype == jnp.uint8 else columns

    def dense(self) -> Float[Array, "O I"]:
        """Return the matrix as floats."""
        return _scaled(self.values, self.scale)

    def rows(self, index: Int[Array, "B T"]) -> Float[Array, "B T I"]:
        """Return the rows at an index, as floats; NaN where there is none."""
        scale = None if self.scale is None else jnp.take(self.scale, index, axis=0)
        return _scaled(jnp.take(self.values, index, axis=0), scale)

    def product(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        """Return x W, accumulated and returned in f32; integers in int32.

        A step of decoding reads all weights for a few rows, so how they are read is what it costs. XLA:CPU reads them
        as they lie, and fuses their cast to f32, in a dot of one row with W stored (O, I), and for more rows in a sum
        of products; else it writes copies first. All of GPT-2 124M's products, one after another in a loop, took, in
        ms on two cores of an EPYC,

            rows   f32 dot   f32 sum   int8 dot   int8 sum   both sides int8
            1      26        1288      6.5        1211       73
            8      46        29        94         26         16
            32     73        61        123        60         41

        4 bits take longer, as their unpacking fuses into none of these.
        """
        rows = x.reshape(-1, x.shape[-1])
        if self.round_inputs:
            out = self._of_integers(rows)
        elif platform() == "cpu":
            out = self._on_cpu(rows.astype(jnp.float32))
        else:
            weights, late = _with_late_scale(self.values, self.scale)
            out = jnp.matmul(rows, weights.astype(x.dtype).T, preferred_element_type=jnp.float32)
            out = out if late is None else out * late
        return out.reshape(*x.shape[:-1], -1)

    def _of_integers(self, rows: Float[Array, "N I"]) -> Float[Array, "N O"]:
        integers, factors = _rounded(rows, 127, rows.shape[1])
        if platform() == "cpu" and len(rows) == 1:
            return self._on_cpu(integers) * factors
        assert self.scale is not None
        both = jax.lax.optimization_barrier((self.values, integers.astype(jnp.int8)))
        out = jnp.einsum("oi,ni->no", *both, preferred_element_type=jnp.int32)
        return out.astype(jnp.float32) * factors * self.scale[:, 0]

    def _on_cpu(self, rows: Float[Array, "N I"]) -> Float[Array, "N O"]:
        values, scale = self.values, self.scale
        if values.dtype != jnp.float32:
            # Ties the weights to the rows: or else XLA moves the cast, the same in every step, out of a loop, which
            # then reads f32. Without a cast it would only make copies.
            values, scale, rows = jax.lax.optimization_barrier((values, scale, rows))
        weights, late = _with_late_scale(values, scale)
        weights = weights.astype(jnp.float32)
        if 1 < len(rows) <= MOST_ROWS:
            out = (weights[:, None] * rows).sum(-1).T
        elif len(rows) == 1 and scale is None:  # a product of matrices would, with a bias added to it, transpose W
            out = (weights @ rows[0])[None]
        else:
            out = (_computed_once(rows) if len(rows) == 1 else rows) @ weights.T
        return out if late is None else out * late


def stored(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, int],
    dtype: DTypeLike,
    *,
    tensor_axis: int | None = None,
    thirds: bool = False,
) -> Any:
    """Return a module's matrix: a parameter of this shape, or the `DecodingMatrix` that its parameters hold instead.

    Of a parameter of which this device holds a part, it is the whole; see `jaxgpt.parallel.whole` for what follows
    `shape`.
    """
    found = module.get_variable("params", name)
    if isinstance(found, DecodingMatrix):
        return found
    if found is not None and inside():
        return whole(found, shape, dtype, tensor_axis=tensor_axis, thirds=thirds)
    return module.param(name, init, shape, jnp.float32)


def quantize(params: Any, kind: Kind) -> Any:
    """Round a model's matrices to integers, so that decoding reads a quarter or an eighth of the bytes.

    The kernels of linear layers, the token table and the head become symmetric integers with f32 scales: one for each
    output (Dettmers et al. 2022, section 2.1), at 4 bits one for each 64 inputs of it. Positions and
    vectors stay. With "w8a8" a layer's input is rounded to 8 bits, too, by a scale for each token (same section), so
    that integers are multiplied: of several rows faster, at the cost of some accuracy.

    Args:
        params: a model's parameters.
        kind: "int8", "int4" or "w8a8".

    Returns:
        Parameters that `GPT.apply`, `generate`, `stream` and `generate_many` take; not for training or saving.

    Raises:
        UsageError: there is no such kind, or a layer's inputs can't be paired.
    """
    checks.choice("quantize", kind, get_args(Kind))
    for path, leaf in walk(params):
        if not isinstance(leaf, DecodingMatrix) and not (checks.is_floating(leaf) and len(leaf.shape) <= 2):
            raise checks.refusal("/".join(path), leaf, "an array of floats, of at most two axes")
    return map_matrices(params, jax.jit(_FORMS[kind]))  # one by one, to hold few copies


def cast_matrices(params: Any, *, dtype: DTypeLike, rows: int = 0) -> Any:
    """Cast matrices once instead of in every step; vectors are small, and layer norm's are used in f32.

    Nothing is copied that is as it should be.

    Args:
        params: a model's parameters, JAX's arrays or NumPy's; quantized matrices in them stay as they are.
        dtype: to compute in.
        rows: that a step reads, where many steps follow. In f32 a CPU reads the matrices fastest that are stored by
            outputs: of a single row those with more inputs than outputs, and of several rows all of them. To store
            them so takes as long as one such step, or two or three. A GPU reads all of them so for a single row: else
            XLA makes of a product of c_proj's an array of its own, as large as the matrix, and sums that.
    """

    def cast(x: Any) -> Any:
        return x if isinstance(x, DecodingMatrix) else jnp.asarray(x, x.dtype if x.ndim == 1 else dtype)

    params = jax.tree.map(cast, params, is_leaf=_is_matrix)
    if platform() == "gpu" and rows == 1:
        return map_matrices(params, DecodingMatrix)
    if platform() == "cpu" and rows > 0 and dtype == jnp.float32:
        return map_matrices(params, DecodingMatrix, lambda outputs, inputs: rows > 1 or inputs > outputs)
    return params


def check_params(config: GPTConfig, params: Any) -> None:
    """Make sure that parameters, quantized or not, are a model's of this config.

    Raises:
        UsageError: they are not; the message has the first few differences.
    """
    leaves_of(params, parameters(config), quantized=DecodingMatrix)


def map_matrices(
    params: Any,
    function: Callable[[Float[Array, "O I"]], DecodingMatrix],
    chosen: Callable[[int, int], bool] = lambda outputs, inputs: True,
) -> Any:
    """Replace kernels of linear layers, the token table and the head, but not those that are replaced already.

    Args:
        params: a model's parameters.
        function: of a matrix stored by outputs.
        chosen: (O, I) → whether to replace a matrix of this size.
    """

    def replaced(path: tuple[Any, ...], x: Any) -> Any:
        *_, module, name = ("", *(key.key for key in path))
        if isinstance(x, DecodingMatrix):
            return x
        if name == "kernel" and chosen(*x.shape[::-1]):
            return function(x.T)
        return function(x) if name == "embedding" and module in ("wte", "lm_head") and chosen(*x.shape) else x

    return jax.tree_util.tree_map_with_path(replaced, params, is_leaf=_is_matrix)


def _int8(matrix: Float[Array, "O I"]) -> DecodingMatrix:
    integers, scale = _rounded(matrix, 127, matrix.shape[1])
    return DecodingMatrix(integers.astype(jnp.int8), scale)


def _w8a8(matrix: Float[Array, "O I"]) -> DecodingMatrix:
    return replace(_int8(matrix), round_inputs=True)


def _int4(matrix: Float[Array, "O I"]) -> DecodingMatrix:
    width = matrix.shape[1]
    if width % 2:
        raise UsageError(f"quantize int4: a layer of {width} inputs; they must be even in number")
    integers, scale = _rounded(matrix, 7, math.gcd(width, GROUP))
    low, high = jnp.split((integers + 8).astype(jnp.uint8), 2, axis=1)
    return DecodingMatrix(low | high << 4, scale)


_FORMS = {"int8": _int8, "int4": _int4, "w8a8": _w8a8}


def _rounded(matrix: Float[Array, "O I"], most: int, size: int) -> tuple[Float[Array, "O I"], Float[Array, "O G"]]:
    """Return integers from -most to most, and the scale of each group of `size` inputs."""
    groups = matrix.astype(jnp.float32).reshape(len(matrix), -1, size)
    scale = jnp.abs(groups).max(-1) / most
    scale = jnp.where(scale > 0, scale, 1)
    return jnp.round(groups / scale[..., None]).reshape(matrix.shape), scale


def _computed_once(x: Float[Array, "N I"]) -> Float[Array, "N I"]:
    """Return x, which XLA:CPU then computes before a product that widens its weights, and not again in each output.

    All that leads to x it fuses into the product, but no division, which it holds for expensive; a token of GPT-2 124M
    in int8 takes 5.7 ms instead of 12.5.
    """
    return x / jnp.sign(jnp.abs(x) + 1)


def _unpacked(values: Num[Array, "*N J"]) -> Num[Array, "*N I"]:
    if values.dtype != jnp.uint8:
        return values
    return jnp.concatenate([values & 15, values >> 4], -1).astype(jnp.int8) - jnp.int8(8)


def _scaled(values: Num[Array, "*N J"], scale: Float[Array, "*N G"] | None) -> Float[Array, "*N I"]:
    values = _unpacked(values)
    if scale is None:
        return values
    grouped = values.astype(jnp.float32).reshape(*scale.shape, -1)
    return (grouped * scale[..., None]).reshape(values.shape)


def _with_late_scale(
    values: Num[Array, "O J"], scale: Float[Array, "O G"] | None
) -> tuple[Num[Array, "O I"], Float[Array, " O"] | None]:
    """Return what to multiply with, and what to multiply the product with: None where that can't wait so long.

    One factor an output can, and a cast alone fuses into products: compiled for an H100, scaled weights were written to
    memory in bf16 and read again, five times the bytes of int8.
    """
    if scale is None or scale.shape[1] > 1:
        return _scaled(values, scale), None
    return _unpacked(values), scale[:, 0]


def _is_matrix(x: Any) -> bool:
    return isinstance(x, DecodingMatrix)
