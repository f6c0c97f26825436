"""In an epoch every window comes once, in an order of the epoch's own, of which any place is found at once."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.batches import Batch, random_batch
from jaxgpt.data.tokens.mixture import proportions
from jaxgpt.data.tokens.shards import TokenShards, open_files
from jaxgpt.data.tokens.shuffle import permuted, shuffled_starts, windows_in_epoch

DATA = np.arange(0xF800, 0xF800 + 1003).astype(np.uint16)  # never UTF-8, for which few ids may be taken
seeds = st.integers(0, 2**64 - 1)


def order(length: int, block_size: int, epoch: int, seed: int = 0, stream: int = 0) -> list[int]:
    """Return where the windows of an epoch begin."""
    count = windows_in_epoch(length, block_size)
    sizes = {"length": length, "block_size": block_size, "seed": seed, "stream": stream}
    return shuffled_starts(count * epoch, np.arange(count), **sizes).tolist()


def draw(data, step: int, *, seed: int = 0, rows: int = 8, length: int = 10, **hosts: int) -> Batch:
    return random_batch(data, seed=seed, step=step, batch_size=rows, block_size=length, shuffle=True, **hosts)


@given(count=st.integers(1, 3000), key=seeds)
def test_each_number_comes_once(count: int, key: int):
    found = permuted(np.arange(count), count, np.full(count, key, np.uint64))
    assert sorted(found.tolist()) == list(range(count))


def test_each_number_may_come_anywhere():
    """By chi-squared, of which a right permutation fails one in a thousand; the keys are fixed."""
    keys = np.random.default_rng(0).integers(2**63, size=20_000).astype(np.uint64)
    for count, limit in ((3, 13.8), (5, 18.5), (24, 49.7)):
        for place in (0, count - 1):
            found = permuted(np.full(len(keys), place), count, keys)
            expected = len(keys) / count
            assert ((np.bincount(found.astype(int), minlength=count) - expected) ** 2 / expected).sum() < limit


@given(length=st.integers(2, 3000), block_size=st.integers(1, 300), epoch=st.integers(0, 2**70), seed=seeds)
def test_an_epoch_visits_every_window_once(length: int, block_size: int, epoch: int, seed: int):
    block_size = min(block_size, length - 1)
    starts = np.sort(order(length, block_size, epoch, seed))
    assert (np.diff(starts) == block_size).all() and 0 <= starts[0] and starts[-1] + block_size < length
    assert len(starts) == 1 or length - 1 - len(starts) * block_size < 2 * block_size


def test_epochs_seeds_and_streams_have_orders_and_cuts_of_their_own():
    orders = [order(1000, 10, 0), order(1000, 10, 1), order(1000, 10, 0, seed=1), order(1000, 10, 0, stream=1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(np.argsort(one) == np.argsort(other)) < 0.1
    assert len({min(order(1000, 10, epoch)) for epoch in range(50)}) == 10


def test_batches_go_through_epochs():
    count = windows_in_epoch(len(DATA), 10)
    rows = np.concatenate([draw(DATA, step).tokens[:, 0] for step in range(3 * count)])
    epochs = rows[: len(rows) // count * count].reshape(-1, count)
    assert (np.diff(np.sort(epochs)) == 10).all() and len(epochs) == 24


@given(step=st.integers(0, 2**40), seed=seeds, at=st.lists(st.integers(1, 1002), min_size=1, max_size=6, unique=True))
def test_a_batch_is_the_same_from_shards_and_on_several_hosts(tmp_path_factory, step: int, seed: int, at: list[int]):
    paths = [tmp_path_factory.getbasetemp() / f"shuffled-{number}.bin" for number in range(len(at) + 1)]
    for path, part in zip(paths, np.split(DATA, sorted(at)), strict=True):
        part.tofile(path)
    whole, sharded = draw(DATA, step, seed=seed), TokenShards(paths, 1 << 16)
    assert (whole.targets == whole.tokens + 1).all() and (np.diff(whole.tokens) == 1).all()
    parts = [draw(sharded, step, seed=seed, shard=host, num_shards=4).tokens for host in range(4)]
    assert (np.concatenate(parts) == whole.tokens).all()


def test_each_source_of_a_mixture_has_epochs_of_its_own(tmp_path: Path):
    sizes = (103, 2003)
    for number, size in enumerate(sizes):
        (np.arange(size, dtype=np.uint16) + number * 16_384).tofile(tmp_path / f"{number}.bin")
    mixture = proportions("ab", [open_files([tmp_path / f"{number}.bin"]) for number in (0, 1)], [1.0, 3.0])
    rows = np.concatenate([draw(mixture, step, rows=7).tokens[:, 0] for step in range(200)])
    for number, size in enumerate(sizes):
        count = windows_in_epoch(size, 10)
        own = rows[rows // 16_384 == number] % 16_384
        epochs = own[: len(own) // count * count].reshape(-1, count)
        assert len(epochs) > 3 and (np.diff(np.sort(epochs)) == 10).all()


@pytest.mark.parametrize("step", [0, 10**9])
def test_a_terabyte_is_shuffled_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    monkeypatch.setattr("jaxgpt.data.tokens.token_files.CHECKED", 1 << 20)
    (tmp_path / "x.bin").touch()
    os.truncate(tmp_path / "x.bin", 10**12)
    assert draw(open_files([tmp_path / "x.bin"]), step, length=1024).tokens.shape == (8, 1024)
