"""Rows come from the sources of a mixture as the weights say, by a formula that knows how many came before."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.batches import random_batch
from jaxgpt.data.tokens.mixture import Mixture, proportions
from jaxgpt.data.tokens.shards import TokenShards
from jaxgpt.data.tokens.token_files import TokenFile

SIZES = (500, 90, 2000)
seeds = st.integers(0, 2**64 - 1)
some_weights = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[TokenFile, ...]:
    """Three files of ids that say where they stand: those of the second begin at 2^14, of the third at 2^15."""
    folder = tmp_path_factory.mktemp("sources")
    for number, size in enumerate(SIZES):
        (np.arange(size, dtype=np.uint16) + 16_384 * number).tofile(folder / f"{number}.bin")
    return tuple(TokenFile(folder / f"{number}.bin") for number in range(3))


def mixed(sources, weights: list | None) -> Mixture:
    return proportions(("a", "b", "c"), sources, weights)


@given(weights=some_weights, seed=seeds, first=st.integers(0, 2**70), count=st.integers(1, 300))
def test_the_rows_before_are_known_without_replaying_them(sources, weights, seed: int, first: int, count: int):
    mixture = mixed(sources, weights)
    for begin in (0, first, 2**32 * (first // 2**32 + 1) - 1):  # the last is where the sequence begins anew
        before, after = (np.array(mixture.rows_before(n, seed=seed), object) for n in (begin, begin + count))
        assert sum(before) == begin
        counts = np.bincount(mixture.sources_of(begin, count, seed=seed), minlength=3)
        assert (after - before == counts).all()


@given(weights=some_weights, seed=seeds, first=st.integers(0, 2**40), count=st.integers(1, 5000))
def test_any_stretch_of_rows_is_shared_out_as_the_weights_say(sources, weights, seed: int, first: int, count: int):
    mixture = mixed(sources, weights)
    counts = np.bincount(mixture.sources_of(first, count, seed=seed), minlength=3)
    assert np.abs(counts - count * np.array(mixture.weights)).max() < 4 + 2 * np.log2(count)


def test_the_seed_decides_too(sources):
    orders = {tuple(mixed(sources, [1, 2, 3]).sources_of(0, 12, seed=seed).tolist()) for seed in range(20)}
    assert len(orders) > 10


@given(seed=seeds, step=st.integers(0, 10**9), length=st.integers(1, 89))
def test_a_row_is_a_window_of_its_source(sources, seed: int, step: int, length: int):
    mixture = mixed(sources, [1, 2, 1])

    def draw(**hosts: int) -> np.ndarray:
        return random_batch(mixture, seed=seed, step=step, batch_size=12, block_size=length, **hosts).tokens

    tokens = draw()
    assert (tokens[:, 0] // 16_384 == mixture.sources_of(12 * step, 12, seed=seed)).all()
    assert (np.diff(tokens) == 1).all()
    parts = np.concatenate([draw(shard=host, num_shards=3) for host in range(3)])
    assert (parts == tokens).all()


def test_sources_may_be_shards(sources, tmp_path: Path):
    paths = [tmp_path / f"{number}.bin" for number in range(4)]
    for path, part in zip(paths, np.split(sources[2][:], [3, 700, 1999]), strict=True):
        part.tofile(path)
    whole, cut = mixed(sources, [1, 1, 5]), mixed((*sources[:2], TokenShards(paths)), [1, 1, 5])
    for step in range(5):
        a, b = (random_batch(one, seed=1, step=step, batch_size=8, block_size=60) for one in (whole, cut))
        assert (a.tokens == b.tokens).all()


@given(weights=some_weights, count=st.integers(1, 500))
def test_batches_to_measure_on_weigh_as_the_mixture(sources, weights, count: int):
    mixture = mixed(sources, weights)
    shares = mixture.shares(count)
    total = sum(own for _, own, _ in shares)
    assert all(own >= 1 for _, own, _ in shares) and abs(total - count) <= 3
    np.testing.assert_allclose([own * scale / total for _, own, scale in shares], mixture.weights)


def test_without_weights_rows_are_as_tokens(sources):
    np.testing.assert_allclose(mixed(sources, None).weights, np.array(SIZES) / sum(SIZES))
    assert mixed(sources, [1e308, 1e308, 1e308]).weights == (1 / 3, 1 / 3, 1 / 3)
