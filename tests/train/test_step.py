"""A step: exact under accumulation and padding, unmoved by what is not finite, a function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.data.batches import Batch
from jaxgpt.errors import UsageError
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective, Sums
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.train import step as training_step
from jaxgpt.train.state import SPIKE_WINDOW, TrainState
from jaxgpt.train.step import Step, make_step

SGD = optax.sgd(1.0)


def squares(params: Any, batch: Batch, key: Any) -> Sums:
    """An objective that shows what a step does with it: w[token] is to be the target."""
    errors = (params["w"][batch.tokens] - batch.targets) ** 2
    return Sums((errors * batch.weights).sum(), batch.weights.sum())


def compile_step(objective: Objective = squares, optimizer: Any = SGD, *, seed: int = 0, **options: Any) -> Step:
    return jax.jit(make_step(objective, optimizer, seed=seed, **options))


def begin(optimizer: optax.GradientTransformation = SGD) -> TrainState:
    return TrainState.create({"w": jnp.linspace(-1, 1, 5)}, optimizer)


def draw_batch(rows: int, weights: np.ndarray | None = None) -> Batch:
    generator = np.random.default_rng(0)
    tokens, targets = generator.integers(5, size=(2, rows, 3), dtype=np.int32)
    return Batch(tokens, targets, np.ones((rows, 3), np.float32) if weights is None else weights)


def always(value: float, gradient: float = 0.0) -> Callable[..., Sums]:
    """Return an objective with this loss and this gradient everywhere, and weight 1."""
    return lambda params, batch, key: Sums(
        value + gradient * (params["w"] - jax.lax.stop_gradient(params["w"])).sum(), jnp.ones(())
    )


def assert_same_bits(first: Any, second: Any) -> None:
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_is_one_big_batch_whatever_the_weights(accumulate: int):
    weights = np.random.default_rng(1).choice([0, 0.5, 1, 7], size=(6, 3)).astype(np.float32)
    batch = draw_batch(6, weights)
    big, whole = compile_step()(begin(), batch)
    small, parts = compile_step(accumulate=accumulate)(begin(), batch)
    # Sums of 18 terms in another order.
    np.testing.assert_allclose(small.params["w"], big.params["w"], rtol=1e-6)
    np.testing.assert_allclose([parts.loss, parts.grad_norm], [whole.loss, whole.grad_norm], rtol=1e-6)


def test_micro_batches_that_a_batch_does_not_make_are_refused():
    with pytest.raises(UsageError, match="accumulate 4 does not divide a batch of 6 rows"):
        compile_step(accumulate=4)(begin(), draw_batch(6))


def test_the_gradient_is_that_of_the_mean_over_all_weights():
    weights = np.array([[1, 0, 2]] * 4, np.float32)
    batch = draw_batch(4, weights)
    state, metrics = compile_step()(begin(), batch)
    w = np.linspace(-1, 1, 5)
    errors = w[batch.tokens] - batch.targets
    gradient = np.array([(2 * errors * weights)[batch.tokens == v].sum() for v in range(5)]) / weights.sum()
    np.testing.assert_allclose(state.params["w"], w - gradient, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, (errors**2 * weights).sum() / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, np.linalg.norm(gradient), rtol=1e-6)


def test_rows_of_weight_zero_do_not_matter():
    batch = draw_batch(4)
    garbage = jax.tree.map(lambda x: np.ones((2, 3), x.dtype), batch).replace(weights=np.zeros((2, 3), np.float32))
    padded = jax.tree.map(lambda *parts: np.concatenate(parts), batch, garbage)
    step = compile_step()
    (state, metrics), (same, same_metrics) = step(begin(), batch), step(begin(), padded)
    np.testing.assert_allclose(same.params["w"], state.params["w"], rtol=1e-6)
    np.testing.assert_allclose(same_metrics.loss, metrics.loss, rtol=1e-6)


def test_a_batch_without_any_weight_is_skipped():
    before = begin()
    after, _ = compile_step()(before, draw_batch(2, np.zeros((2, 3), np.float32)))
    assert_same_bits(after.params, before.params)
    assert int(after.skipped) == 1


@pytest.mark.parametrize(
    ("loss", "gradient"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)]
)
@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # by a branch, by a select
def test_what_is_not_finite_moves_nothing(loss: float, gradient: float, backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_step, "platform", lambda: backend)
    optimizer = optax.adam(0.1)
    state, _ = compile_step(squares, optimizer)(begin(optimizer), draw_batch(2))  # moments that are not zero
    bad, good = (compile_step(objective, optimizer) for objective in (always(loss, gradient), squares))
    for n in (1, 2):
        before = state
        state, metrics = bad(state, draw_batch(2))
        for name in ("params", "opt_state", "losses"):
            assert_same_bits(getattr(state, name), getattr(before, name))
        assert (int(state.step), int(state.skipped), int(state.streak)) == (1 + n, n, n)
        assert (int(metrics.updates), int(metrics.skipped), int(metrics.streak)) == (1, n, n)
    state, metrics = good(state, draw_batch(2))
    assert (int(state.skipped), int(state.streak)) == (2, 0)
    assert int(metrics.updates) == 1, "the schedule goes on where the last update that was made left it"
    assert int(optax.tree_utils.tree_get(state.opt_state, "count")) == 2
    assert (state.params["w"] != before.params["w"]).any()


def test_spikes_are_skipped_once_the_window_is_full():
    def after(loss: float, state: TrainState, **options: Any) -> TrainState:
        return compile_step(always(loss, 1.0), **options)(state, draw_batch(1))[0]

    known = 1 + 0.1 * (jnp.arange(SPIKE_WINDOW) % 2)  # mean 1.05, standard deviation 0.05
    young, full = begin().replace(losses=known.at[0].set(jnp.nan)), begin().replace(losses=known)
    assert int(after(2.0, young, skip_spikes=True).skipped) == 0, "127 losses are not enough to judge by"
    spike = after(1.36, full, skip_spikes=True)
    assert int(spike.skipped) == 1
    assert_same_bits((spike.params, spike.losses), (full.params, full.losses))
    for usual in (after(1.34, full, skip_spikes=True), after(-9.0, full, skip_spikes=True), after(1.36, full)):
        assert int(usual.skipped) == 0
        assert_same_bits(usual.losses[:-1], full.losses[1:])


def test_random_keys_are_a_function_of_seed_step_and_micro_batch():
    def objective(params: Any, batch: Batch, key: jax.Array) -> Sums:
        return Sums(jax.random.uniform(key) * batch.tokens[0, 0] + 0 * params["w"].sum(), jnp.ones(()))

    def losses(seed: int, accumulate: int, tokens: list[int]) -> tuple[float, float]:
        column = np.array(tokens, np.int32)[:, None]
        batch = Batch(column, column, np.ones(column.shape, np.float32))
        step = compile_step(objective, seed=seed, accumulate=accumulate)
        state, first = step(begin(), batch)
        return float(first.loss), float(step(state, batch)[1].loss)

    first, second = losses(0, 1, [1])
    assert (first, second) == losses(0, 1, [1])
    assert len({first, second, *losses(1, 1, [1])}) == 4
    # Of two micro-batches, a token of 0 takes each one's number out in turn.
    numbers = [losses(0, 2, tokens) for tokens in ([1, 0], [0, 1])]
    assert len({number for pair in numbers for number in pair}) == 4


def test_the_same_step_twice_gives_the_same_bits(tiny):
    (first, metrics), (second, same) = (tiny.step(tiny.begin(), tiny.batches(0)) for _ in range(2))
    assert_same_bits((first, metrics), (second, same))


def test_dropout_changes_with_the_step(tiny):
    first, later = tiny.begin(), tiny.begin().replace(step=jnp.ones((), jnp.int32))
    losses = [float(tiny.step(state, tiny.batches(0))[1].loss) for state in (first, later)]
    assert losses[0] != losses[1]


def test_the_state_is_donated_whole(tiny):
    state = tiny.begin()
    tiny.step(state, tiny.batches(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.losses)))


def test_bf16_trains_with_masters_and_moments_in_f32(tiny):
    model = GPT(tiny.config, jnp.bfloat16)
    step = jax.jit(make_step(pretrain(model), tiny.optimizer, seed=0), donate_argnums=0)
    state, losses = tiny.begin(), []
    for i in range(50):
        state, metrics = step(state, tiny.batches(i))
        losses.append(float(metrics.loss))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert kinds == {jnp.dtype("float32")}
    # From ln 17 = 2.83; the text counts, so there is nothing that can't be learnt.
    assert losses[0] > 2.7 and np.mean(losses[-5:]) < 2.3
