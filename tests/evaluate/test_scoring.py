import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.evaluate import Row, Scorer, score_tokens, windows
from jaxgpt.mesh import make_mesh
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import quantize
from jaxgpt.objectives import cross_entropy
from jaxgpt.tokenizers import CharTokenizer

CONFIG = GPTConfig(16, 16, 16, 2, 2)
CHARS = CharTokenizer("abcdefghijklmnop")


def test_rows_come_back_in_order_with_what_each_gets_alone(draw, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(16, size=n), first) for n, first in [(17, 3), (2, 1), (9, 8), (17, 16), (5, 1)] * 3]
    scorer = Scorer(CONFIG, draw(CONFIG), CHARS, batch_size=2)
    monkeypatch.setattr("jaxgpt.evaluate.scoring.AHEAD", 2)  # several chunks
    logits, _ = GPT(CONFIG).apply(
        {"params": jax.device_put(draw(CONFIG))}, jnp.stack([jnp.resize(row.ids, 16) for row in rows])
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for row, found, expected in zip(rows, scorer.score(iter(rows)), log_probs, strict=True):
        places, targets = range(row.first - 1, len(row.ids) - 1), row.ids[row.first :]
        np.testing.assert_allclose(found.log_probs, expected[places, targets], atol=2e-5)
        assert found.likeliest.tolist() == (expected[places].argmax(-1) == targets).tolist()
        assert found.ids.tolist() == targets.tolist()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(np.array([1, 16])), "row 1 has the id 16; the model's are 0 to 15"),
        (Row(np.array([1, -1, 2])), "row 1 has the id -1"),
        (Row(np.array([1])), "row 1 has 1 tokens; it must have 2 to 17"),
        (Row(np.zeros(18, int)), "row 1 has 18 tokens"),
        (Row(np.array([1, 2, 3]), 0), "row 1: first is 0; it must be a whole number from 1 to 2"),
        (Row(np.array([1, 2, 3]), 3), "row 1: first is 3"),
    ],
    ids=str,
)
def test_rows_that_would_get_nan_or_anothers_numbers_are_refused(draw, row, says):
    scorer = Scorer(CONFIG, draw(CONFIG), CHARS, batch_size=1)
    with pytest.raises(UsageError, match=says):
        list(scorer.score([Row(np.array([1, 2])), row]))


@pytest.mark.parametrize(("context", "stride"), [(0, None), (8, 0), (8, 8), (8, 20)])
def test_windows_that_stand_still_or_leave_tokens_out_are_refused(context, stride):
    with pytest.raises(UsageError, match="it must be a whole number from 1"):
        next(windows(np.arange(50), context=context, stride=stride))


def test_logits_never_exist_whole(monkeypatch):
    """No array of a scoring program is as large as B x T x V, but for what one part of it takes."""
    monkeypatch.setattr(cross_entropy, "PART_BYTES", 8 * 16 * 512 * 4 // 4)
    config = GPTConfig(512, 16, 16, 1, 2)
    params = jax.eval_shape(lambda: GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    tokens = jax.ShapeDtypeStruct((8, 16), np.int32)
    text = score_tokens.lower(GPT(config), params, tokens, tokens, tokens).as_text()
    assert "tensor<8x4x512xf32>" in text and "tensor<8x16x512xf32>" not in text


def test_a_mesh_is_refused_that_does_not_fit(draw):
    mesh = make_mesh()
    with pytest.raises(UsageError, match="batch_size is 0"):
        Scorer(CONFIG, draw(CONFIG), CHARS, batch_size=0)
    with pytest.raises(UsageError, match="fsdp 3 does not divide 1 devices"):
        make_mesh(fsdp=3)
    assert Scorer(CONFIG, draw(CONFIG), CHARS, mesh=mesh).batch_size == 8 * mesh.shape["data"]


PROGRAM = """
import numpy as np, jax
from jaxgpt.evaluate import Row, Scorer
from jaxgpt.mesh import make_mesh
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.errors import UsageError
config = GPTConfig(17, 16, 16, 2, 2)  # an id more than the tokenizer's, which tensor doesn't divide
params = GPT(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
rows = [Row(np.random.default_rng(n).integers(16, size=n + 2)) for n in range(15)]
def total(**axes):
    scorer = Scorer(config, params, CharTokenizer("abcdefghijklmnop"), mesh=make_mesh(**axes))
    scored = list(scorer.score(rows))
    return [np.concatenate([getattr(one, name) for one in scored]) for name in ("log_probs", "likeliest")]
one = total()
for axes in ({"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}):
    np.testing.assert_allclose(total(**axes), one, atol=1e-5)
assert 0 < one[1].sum() < len(one[1])
from jaxgpt.model.quantized import quantize
try:
    Scorer(config, quantize(params, "int8"), CharTokenizer("abcdefghijklmnop"), mesh=make_mesh(fsdp=2))
except UsageError as error:
    assert "lie whole on every device" in str(error)
try:
    Scorer(config, params, CharTokenizer("abcdefghijklmnop"), batch_size=6)
except UsageError as error:
    assert "batch_size 6 can't be divided among 4 devices; nearest are 4 and 8" in str(error), error
    print("fine")
"""


@pytest.mark.slow
def test_every_mesh_gives_the_same_figures():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=root, capture_output=True, text=True)
    assert result.stdout == "fine\n", result.stderr


def test_quantized_and_dense_heads_are_scored_alike(draw):
    rows = [Row(np.arange(10))]
    dense, rounded = (
        next(Scorer(CONFIG, params, CHARS, batch_size=1).score(rows))
        for params in (draw(CONFIG), quantize(draw(CONFIG), "int8"))
    )
    np.testing.assert_allclose(rounded.log_probs, dense.log_probs, atol=0.3)
