"""Figures show the arrays that they are given, no others, and any text."""

import re
import sys

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle

import jaxgpt.inspect as look
from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import count
from jaxgpt.model.attention import NEVER
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import sinusoids

CONFIG = GPTConfig(13, 8, n_embd=8, n_layer=2, n_head=2)
ROWS = [[1, 5, 2, 9, 12], [4, 4, 7]]
NASTY = ["$x^", " king", "\n", "\x1b[31m", "ש", "東", "🙂", "</script>", b"\xff", "long" * 9, "", "e"]


@pytest.fixture(scope="module")
def record(draw):
    return look.inspect(CONFIG, draw(CONFIG), ROWS)


def images(figure):
    """Return the arrays of a figure's images, but for the colour bars."""
    return [image.get_array() for axes in figure.axes for image in axes.get_images()]


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_tokens_are_all_there_whatever_is_in_them(tmp_path):
    figure = look.plot_tokens(NASTY, list(range(len(NASTY))), width=30)
    (axes,) = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(boxes) == len(NASTY)
    assert all(box.get_x() + box.get_width() <= 30 for box in boxes)
    shown = texts(axes)[::2]
    assert shown[:4] == ["$x^", "·king", "\\n", "\\x1b[31m"] and shown[8] == "\\xff"
    assert [text.split("\n")[0] for text in texts(axes)[1::2]] == [str(i) for i in range(len(NASTY))]
    figure.savefig(tmp_path / "tokens.png")  # a glyph that the font lacks would warn
    with pytest.raises(UsageError, match="pieces: 1 of them, but 2 ids"):
        look.plot_tokens(["a"], [1, 2])


def test_the_map_of_embeddings_is_their_principal_components():
    table = np.random.default_rng(0).normal(size=(13, 8)).astype("f4")
    (axes,) = look.plot_embeddings(table, [3, 5], neighbours=2, name=lambda i: f"t{i}").axes
    own, near = (np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection))
    around = {j for i in (3, 5) for j, _ in look.nearest(table, i, 2)} - {3, 5}
    places = look.principal_components(table[[3, 5, *sorted(around)]])
    np.testing.assert_allclose(np.concatenate([own, near]), places)
    assert texts(axes) == [f"t{i}" for i in (3, 5, *sorted(around))]


def test_positions_are_the_table_the_sinusoids_and_their_cosines():
    table = np.random.default_rng(0).normal(size=(6, 8)).astype("f4")
    given, fixed, cosine = images(look.plot_positions(table))
    np.testing.assert_array_equal(given, table)
    np.testing.assert_array_equal(fixed, sinusoids(6, 8))
    np.testing.assert_allclose(np.diag(cosine), 1, rtol=1e-5)


def test_what_has_a_sign_is_orange_above_zero_and_blue_below():
    """As the page says of its tables, with scripts and without."""
    image = look.plot_positions(np.array([[-1.0, 1.0]])).axes[0].get_images()[0]
    (below, above), _ = image.to_rgba(np.array([[-1.0, 1.0], [0.0, 0.0]]))[..., :3]
    assert below[2] > below[0] and above[0] > above[2]


def test_a_bag_of_words_is_one_sum_without_positions_and_two_with_them():
    words, positions = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("f4")
    order = [3, 0, 5, 1, 4, 2]
    without, with_them = (lines(axes) for axes in look.plot_bag_of_words(words, positions, order).axes)
    np.testing.assert_allclose(without["as it is"], without["in another order"], rtol=1e-4, atol=1e-5)
    for rows, label in ((words, "as it is"), (words[order], "in another order")):
        x = rows + positions
        weights = np.exp(x @ x.T / 8**0.5)
        expected = (weights / weights.sum(-1, keepdims=True) @ x).sum(0)
        np.testing.assert_allclose(with_them[label], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(with_them["as it is"] - with_them["in another order"]).max() > 0.1
    with pytest.raises(UsageError, match="order: "):
        look.bag_of_words(words, positions, [0, 0, 1, 2, 3, 4])


def test_attention_is_each_heads_weights_without_padding(record):
    shown = images(look.plot_attention(record, row=1))
    assert len(shown) == 4
    for (layer, head), image in zip(np.ndindex(2, 2), shown, strict=True):
        np.testing.assert_array_equal(image, record.attention.weights[layer, 1, head, :3, :3])
    weights = look.attention_stages(np.eye(4, 8, dtype="f4"), n_head=2).weights
    (image,) = images(look.plot_attention(weights, [(0, 1)], labels=["a", "b", "$", "d"]))
    np.testing.assert_array_equal(image, weights[0, 1])
    for heads, says in (([(2, 0)], "layer is 2"), ([(0, 2)], "head is 2")):
        with pytest.raises(UsageError, match=says):
            look.plot_attention(record, heads)
    with pytest.raises(UsageError, match="row is 2"):
        look.plot_attention(record, row=2)


def test_stages_are_those_of_one_head(record):
    stages = record.attention
    shown = images(look.plot_attention_stages(record, 1, 0, row=1, labels=["a", "b", "c"]))
    for name, image in zip(("scores", "scaled", "masked", "weights"), shown, strict=False):
        values = np.asarray(getattr(stages, name)[1, 1, 0, :3, :3])
        np.testing.assert_array_equal(np.ma.filled(image, NEVER), values)
    assert shown[2].mask.sum() == 3
    np.testing.assert_array_equal(shown[4], stages.heads[1, 1, 0, :3])
    np.testing.assert_array_equal(shown[5], stages.out[1, 1, :3])
    raw = look.attention_stages(np.eye(4, 8, dtype="f4"))
    np.testing.assert_array_equal(images(look.plot_attention_stages(raw))[0], raw.scores[0, 0])
    with pytest.raises(UsageError, match="head is 1"):
        look.plot_attention_stages(raw, head=1)


def test_the_stream_shows_norms(record):
    figure = look.plot_residual_stream(record, row=1)
    stream = np.concatenate([record.resid_pre[:, 1, :3], record.resid_final[None, 1, :3]])
    norms = np.linalg.norm(stream, axis=-1)
    np.testing.assert_allclose(images(figure)[0], norms, rtol=1e-6)
    found = lines(figure.axes[1])
    np.testing.assert_allclose(found["stream"], norms.mean(-1), rtol=1e-6)
    mlp = np.linalg.norm(np.asarray(record.mlp_out[:, 1, :3]), axis=-1).mean(-1)
    np.testing.assert_allclose(found["feed-forward adds"], mlp, rtol=1e-6)
    assert list(lines(look.plot_residual_stream(stream).axes[1])) == ["stream"]


def test_predictions_and_the_lens_show_the_likeliest_tokens(record, draw):
    logits = np.asarray(record.logits[1, :3], np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    figure = look.plot_predictions(record, 4, row=1, labels=["a", "b", "c"], name=lambda i: f"t{i}")
    best = np.argsort(-expected, axis=-1)[:, :4]
    np.testing.assert_allclose(images(figure)[0], np.take_along_axis(expected, best, -1).T, rtol=1e-6)
    assert texts(figure.axes[0]) == [f"t{i}" for i in best.T.ravel()]
    lens = np.asarray(record.lens[:, 1, :3])
    figure = look.plot_logit_lens(record, row=1)
    np.testing.assert_allclose(images(figure)[0][-1], expected.max(-1), rtol=1e-4)
    assert texts(figure.axes[0]) == [str(i) for i in lens.argmax(-1).ravel()]
    with pytest.raises(UsageError, match="lens=True"):
        look.plot_logit_lens(record.replace(lens=None))


def test_the_next_token_is_the_tables(record):
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    rows = look.next_token_table(record.logits[0, 2], **settings, count=6)
    (axes,) = look.plot_next_token(record.logits[0, 2], **settings, count=6).axes
    before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert before == [row.probability for row in rows] and after == [row.sampled for row in rows]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(row.token) for row in rows]


def test_parameters_are_the_atlass():
    (axes,) = look.plot_parameters(CONFIG).axes
    parts = count(CONFIG)
    total = parts.pop("total")
    assert [bar.get_width() for bar in axes.containers[0]] == list(parts.values())
    assert sum(parts.values()) == total and f"{total:,}" in axes.get_title()


def test_training_shows_the_rows():
    rows = [{"step": i, "split": "train", "loss": 3.0 / (1 + i), "lr": 0.1 * i, "grad_norm": None} for i in range(5)]
    rows.append({"step": 4, "split": "val", "loss": 2.5})
    loss, rate = look.plot_training(rows, title="run").axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[row["loss"] for row in rows[:5]], [2.5]]
    assert list(rate.lines[0].get_ydata()) == [row["lr"] for row in rows[:5]]


def test_a_power_law_is_found_again():
    compute = np.logspace(12, 16, 5)
    law = look.fit_power_law(compute, 40 * compute**-0.05)
    assert law.exponent == pytest.approx(0.05) and law.factor == pytest.approx(40) and law.standard_error < 1e-9
    noisy = 40 * compute**-0.05 * np.exp(np.random.default_rng(0).normal(0, 0.01, 5))
    slope, covariance = np.polyfit(np.log(compute), np.log(noisy), 1, cov=True)
    law = look.fit_power_law(compute, noisy)
    assert law.exponent == pytest.approx(-slope[0]) and law.standard_error == pytest.approx(covariance[0, 0] ** 0.5)
    for x, y, says in (
        ([1, 2], [1, 2], "three pairs"),
        ([1, 1, 1], [1, 2, 3], "unequal x"),
        ([1, 2, 3], [1, 0, 1], "positive"),
    ):
        with pytest.raises(UsageError, match=says):
            look.fit_power_law(x, y)


def test_scaling_shows_runs_and_their_law():
    n, d, losses = [1e4, 1e5, 1e6], [2e5, 1e6, 4e7], [3.0, 2.5, 2.0]
    left, right = look.plot_scaling(n, d, losses).axes
    found = lines(left)
    np.testing.assert_array_equal(found["runs"], d)
    best = left.lines[2]
    np.testing.assert_allclose(best.get_ydata(), 20 * np.asarray(best.get_xdata()))
    np.testing.assert_allclose(6 * best.get_xdata() * best.get_ydata(), 6 * np.asarray(n) * d)
    np.testing.assert_array_equal(lines(right)["runs"], losses)
    assert len(look.plot_scaling(n[:1], d[:1]).axes) == 1
    # Several ways to spend one budget lie on no law over budgets.
    assert len(look.plot_scaling([100, 200, 400], [40, 20, 10], [3.0, 2.9, 3.1]).axes[1].lines) == 1


@pytest.mark.usefixtures("unchecked_types")
def test_what_can_not_be_drawn_is_refused(record):
    table = np.eye(4)
    for call, says in (
        (lambda: look.plot_embeddings(table, [0, -1]), "tokens has the id -1; the model's are 0 to 3"),
        (lambda: look.plot_embeddings(table, []), "tokens is []; it must be one token id or more"),
        (lambda: look.plot_embeddings(table, range(10**12)), "tokens is range"),
        (lambda: look.plot_embeddings(table, [0], neighbours=-1), "neighbours is -1; it must be"),
        (lambda: look.plot_attention(record, []), "heads is []; it must be one (layer, head) or more"),
        (lambda: look.plot_bag_of_words(table, table, range(10**12)), "order: [0, 1, 2"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)):
            call()


def test_they_can_be_drawn_and_touch_no_state_of_pyplot(record, tmp_path):
    labels = [" king", "$x^", "\n", "東", "🙂"]
    for figure in (
        look.plot_attention(record, [(0, 1)], labels=labels),
        look.plot_attention_stages(record, labels=labels),
        look.plot_residual_stream(record, labels=labels),
        look.plot_logit_lens(record, labels=labels, name=lambda i: labels[i % 5]),
        look.plot_next_token(record.logits[0, 0], 0.0, name=lambda i: labels[i % 5]),
    ):
        figure.savefig(tmp_path / "figure.png", dpi=30)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
