"""A vocabulary that devices divide, or that is padded for their products: values and gradients stay what they were."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxgpt.mesh import make_mesh
from jaxgpt.objectives import cross_entropy as parts
from jaxgpt.objectives import vocabulary
from jaxgpt.objectives.cross_entropy import cross_entropy, map_logits
from jaxgpt.objectives.outputs import token_log_probs
from jaxgpt.objectives.vocabulary import argmax
from jaxgpt.parallel import ROWS
from jaxgpt.rl.policy import _log_probs_and_entropy
from tests.objectives.test_cross_entropy import draw

ROOT = Path(__file__).parents[2]
# Of 5 ids four devices have two each, and the last of them none.
SIZES = (5, 13, 129)


def losses(x: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """Return a sum of each kind of what objectives ask of logits."""
    log_probs, entropy = map_logits(partial(_log_probs_and_entropy, 0.7), x, head, targets)
    scored = map_logits(token_log_probs, x, head, targets)
    return cross_entropy(x, head, targets, weights), (log_probs * weights).sum(), (entropy * scored).sum()


def asked(x: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> Any:
    """Return these sums and their gradients, one of them without a gradient, and which token is the likeliest."""
    best = map_logits(lambda logits, _: argmax(logits), x, head, targets)
    alone = cross_entropy(x, head, targets, weights)
    sums, pull = jax.vjp(lambda *of: losses(*of, targets, weights), x, head)
    return sums, pull(tuple(jnp.array([1.0, 0.3, 0.1]))), alone, best


def compare(given: Callable[..., Any], vocab_size: int) -> None:
    """Check that a program says what one device says, where two tokens are equally likely, too."""
    x, head, targets, weights = draw(2, 7, 16, vocab_size)
    head = 0.3 * head.at[-1].set(head[0])
    expected = jax.jit(lambda *args: asked(*args))(x, head, targets, weights)
    for one, other in zip(*map(jax.tree.leaves, (given(x, head, targets, weights), expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_padding_for_an_accelerators_products_changes_nothing(monkeypatch: pytest.MonkeyPatch, vocab_size: int):
    def padded(*args: jax.Array) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(vocabulary, "platform", lambda: "gpu")
            lowered = jax.jit(lambda *args: asked(*args)).lower(*args)
        assert f"tensor<2x7x{-(-vocab_size // 128) * 128}xf32>" in lowered.as_text()
        return lowered.compile()(*args)

    compare(padded, vocab_size)


def test_devices_that_divide_a_vocabulary_say_what_one_says():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "tests.objectives.test_vocabulary"], cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Compare two and four devices with one, with all columns of rows at once or one at a time."""
    each, large = PartitionSpec(), parts.PART_BYTES
    for tensor, vocab_size, part_bytes in ((4, 5, large), (4, 13, 8), (2, 129, large)):
        parts.PART_BYTES = part_bytes
        mesh = make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
        own = jax.shard_map(
            asked, mesh=mesh, in_specs=each, out_specs=each, axis_names=frozenset(ROWS), check_vma=False
        )
        compare(jax.jit(own), vocab_size)


if __name__ == "__main__":
    main()
