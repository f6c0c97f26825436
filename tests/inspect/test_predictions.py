"""Tables of predictions, losses and heads."""

from dataclasses import replace

import numpy as np
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.inspect import (
    ablate_heads,
    inspect,
    nearest,
    next_token_table,
    principal_components,
    residual_std,
    token_log_probs,
    without_heads,
)  # fmt: skip
from jaxgpt.model.config import GPTConfig

CONFIG = GPTConfig(13, 8, n_embd=8, n_layer=2, n_head=2)
LOGITS = np.asarray([0.0, 2.0, 1.0, -1.0], np.float32)
IDS = [1, 5, 2, 9, 12]


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_the_table_shows_probabilities_before_and_after():
    rows = next_token_table(LOGITS, temperature=0.5, top_k=2)
    assert [row.token for row in rows] == [1, 2, 0, 3]
    np.testing.assert_allclose([row.probability for row in rows], softmax(LOGITS)[[1, 2, 0, 3]], rtol=1e-5)
    np.testing.assert_allclose([row.sampled for row in rows], [*softmax(np.asarray([4.0, 2.0])), 0, 0], rtol=1e-5)
    assert [row.sampled for row in next_token_table(LOGITS, temperature=0.0, count=2)] == [1, 0]
    with pytest.raises(UsageError, match="top_p"):
        next_token_table(LOGITS, top_p=2.0)


def test_log_probs_are_those_of_the_logits(draw):
    params = draw(CONFIG)
    logits = np.asarray(inspect(CONFIG, params, [IDS]).logits[0], np.float64)
    expected = [np.log(softmax(logits[t])[IDS[t + 1]]) for t in range(4)]
    np.testing.assert_allclose(token_log_probs(CONFIG, params, IDS), expected, rtol=1e-3, atol=1e-4)
    for tokens, says in (([1], "there must be 2 to 9"), ([1, 13], "id 13")):
        with pytest.raises(UsageError, match=says):
            token_log_probs(CONFIG, params, tokens)


def test_heads_that_are_off_add_nothing(draw):
    params = draw(CONFIG)
    bias = params["h_1"]["attn"]["c_proj"]["bias"]
    off = inspect(CONFIG, without_heads(CONFIG, params, [(1, 0), (1, 1)]), [IDS])
    np.testing.assert_allclose(off.attention.out[1, 0], np.broadcast_to(bias, (5, 8)), atol=1e-6)
    table = ablate_heads(CONFIG, params, IDS)
    assert sorted((row.layer, row.head) for row in table) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row.change for row in table] == sorted((row.change for row in table), reverse=True)
    whole = -token_log_probs(CONFIG, params, IDS).mean()
    assert all(abs(row.loss - row.change - whole) < 1e-5 for row in table)
    for head, says in (((2, 0), "layer is 2"), ((0, 2), "head is 2")):
        with pytest.raises(UsageError, match=says):
            without_heads(CONFIG, params, [head])


def test_scaled_projections_keep_the_stream_flat_where_it_starts_wide():
    config = replace(CONFIG, n_layer=8, n_embd=64, n_head=4, n_positions=32, vocab_size=97, initializer_range=0.1)
    flat, wide = (residual_std(config, scaled_projections=scaled, stream_std=0.8) for scaled in (True, False))
    assert len(flat) == 9 and abs(flat[0] - 0.8) < 1e-3
    assert wide[-1] / wide[0] > 2 * flat[-1] / flat[0]
    assert residual_std(config)[0] == pytest.approx(0.1 * 2**0.5, rel=0.1)


def test_neighbours_and_a_flat_map():
    table = np.asarray([[1, 0, 0], [2, 0.1, 0], [0, 1, 0], [-1, 0, 0]], np.float32)
    assert [i for i, _ in nearest(table, 0)] == [1, 2, 3]
    assert nearest(table, 0, 1)[0][1] == pytest.approx(1 / 1.0025**0.5 / 1, rel=1e-2)
    assert principal_components(table).shape == (4, 2)
    assert principal_components(table[:1]).shape == (1, 2)
    with pytest.raises(UsageError, match="token is 4"):
        nearest(table, 4)
