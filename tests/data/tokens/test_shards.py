"""Shards are one sequence of ids: cut anywhere, they give what the whole file gives, and cost no memory."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.batches import eval_batch, random_batch
from jaxgpt.data.tokens import shards as shards_module
from jaxgpt.data.tokens import token_files
from jaxgpt.data.tokens.shards import TokenShards, open_files
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.data.tokens.token_writer import write_token_file
from jaxgpt.errors import RunError, UsageError
from jaxgpt.tokenizers.char import CharTokenizer

IDS = (np.arange(1000, dtype=np.uint16) * 7919) % 50257
TERABYTE = 10**12
cuts = st.lists(st.integers(1, 999), min_size=1, max_size=12, unique=True).map(sorted)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shards")


def cut(place: Path, at: list[int], ids: np.ndarray = IDS) -> list[Path]:
    """Write ids into files that end at these places."""
    paths = [place / f"train_{number:06}.bin" for number in range(len(at) + 1)]
    for path, part in zip(paths, np.split(ids, at), strict=True):
        part.tofile(path)
    return paths


@given(at=cuts, seed=st.integers(0, 2**32), step=st.integers(0, 10**9), length=st.integers(1, 999))
def test_shards_give_the_batches_of_the_whole_file(place, at: list[int], seed: int, step: int, length: int):
    sharded = TokenShards(cut(place, at))
    for hosts in (1, 2):
        for host in range(hosts):
            sizes = {"batch_size": 4, "block_size": length, "shard": host, "num_shards": hosts}
            for draw in (
                lambda data, sizes=sizes: random_batch(data, seed=seed, step=step, **sizes),
                lambda data, sizes=sizes: eval_batch(data, index=1, count=3, **sizes),
            ):
                whole, found = draw(IDS), draw(sharded)
                assert (found.tokens == whole.tokens).all() and (found.targets == whole.targets).all()


@given(
    at=cuts,
    fraction=st.sampled_from([None, 0.1, 0.9]),
    index=st.slices(1000) | st.lists(st.integers(-99, 98), max_size=9) | st.just([[3, -1], [0, 98]]),
)
def test_they_are_indexed_as_an_array(place, at: list[int], fraction: float | None, index):
    sharded, whole = TokenShards(cut(place, at)), IDS
    pairs = [(sharded, whole)]
    if fraction is not None:
        pairs = list(zip(sharded.split(fraction), np.split(whole, [int(1000 * (1 - fraction))]), strict=True))
    for found, expected in pairs:
        places = index if isinstance(index, slice) else np.array(index, np.int64)
        np.testing.assert_array_equal(found[places], expected[places], strict=True)
        assert len(found) == len(expected)
        with pytest.raises(IndexError):
            found[np.array([len(expected)])]


def test_one_path_is_a_file_and_the_order_counts(tmp_path: Path):
    paths = cut(tmp_path, [300])
    assert open_files(paths[:1]).fingerprint == TokenFile(paths[0]).fingerprint
    assert open_files(paths).fingerprint != open_files(paths[::-1]).fingerprint


def test_few_files_are_open_at_once(place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards_module, "_MAPPED", 3)
    paths = cut(place, list(range(20, 1000, 20)))
    before = open_descriptors()
    sharded = TokenShards(paths)
    for step in range(10):
        batch = random_batch(sharded, seed=0, step=step, batch_size=8, block_size=50)
        assert (batch.tokens == random_batch(IDS, seed=0, step=step, batch_size=8, block_size=50).tokens).all()
    assert open_descriptors() <= before + 3


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.mark.parametrize("number", [1, 300])
def test_a_terabyte_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    for module in (token_files, shards_module):
        monkeypatch.setattr(module, "CHECKED", 1 << 24)
    paths = [tmp_path / f"{i}.bin" for i in range(number)]
    for path in paths:
        path.touch()
        os.truncate(path, TERABYTE // number // 2 * 2)
    tracemalloc.start()
    try:
        ids = open_files(paths)
        train, val = ids.split(0.1)
        for part in (train, val):
            for step in range(3):
                random_batch(part, seed=0, step=step, batch_size=8, block_size=1024)
            part.check_unchanged()
        eval_batch(val, index=9, count=10, batch_size=8, block_size=1024)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert len(train) + len(val) == len(ids) > TERABYTE // 2 - number


def test_each_of_many_files_is_looked_at_first_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards_module, "CHECKED", 1 << 10)
    monkeypatch.setattr(shards_module, "_LEAST", 1 << 8)
    monkeypatch.setattr(token_files, "_BLOCK", 1 << 6)
    ids = np.zeros(10_000, np.uint16)
    seen = {TokenShards(cut(tmp_path, [2000, 6000, 9000], ids)).fingerprint}
    for place in (0, 1999, 2000, 5999, 6000, 8999, 9000, 9999):
        ids[place] = 60000
        with pytest.raises(UsageError, match=r"train_00000\d.bin: id 60000"):
            TokenShards(cut(tmp_path, [2000, 6000, 9000], ids))
        ids[place] = 1
        seen.add(TokenShards(cut(tmp_path, [2000, 6000, 9000], ids)).fingerprint)
    assert len(seen) == 9


def test_a_change_of_any_is_noticed(tmp_path: Path):
    paths = cut(tmp_path, [100, 500])
    before = TokenShards(paths)
    for part in (before, *before.split(0.5)):
        part.check_unchanged()
    os.utime(paths[1], (0, 0))
    for part in (before, *before.split(0.5)):
        with pytest.raises(RunError, match="train_000001.bin: changed while in use"):
            part.check_unchanged()
    IDS[::-1][100:500].tofile(paths[1])
    assert TokenShards(paths).fingerprint != before.fingerprint


def test_shards_that_disagree_are_named(tmp_path: Path):
    abc, xyz, ten = CharTokenizer("abc"), CharTokenizer("xyz"), CharTokenizer("abcdefghij")
    paths = [tmp_path / f"train_{number}.bin" for number in range(2)]
    write_token_file(paths[0], iter([np.arange(3)]), abc)

    def message(vocab_size: int = 3) -> str:
        with pytest.raises(UsageError) as caught:
            TokenShards(paths, vocab_size)
        return str(caught.value).removeprefix(f"{tmp_path}/")

    write_token_file(paths[1], iter([np.arange(3)]), xyz)
    made = "made by tokenizer 'char', but train_0.bin by another, 'char'"
    assert message() == f"train_1.bin: {made}; shards must be alike"
    write_token_file(paths[1], iter([np.arange(3)]), ten)
    assert message() == (
        "train_1.bin: has a vocabulary of 10, but train_0.bin has a vocabulary of 3; shards must be alike"
    )
    paths[1].with_name("train_1.bin.json").unlink()
    np.arange(3, dtype=np.uint32).tofile(paths[1])
    assert message(1 << 17) == (
        "train_1.bin: has ids of uint32, but train_0.bin has ids of uint16; shards must be alike"
    )
    paths[1].write_bytes(b"123")
    assert message() == "train_1.bin: 3 bytes is no whole number of uint16 ids above 0"
