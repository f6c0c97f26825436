"""Targets: each has one reading, and another name is answered with the nearest."""

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.plan.targets import CHIPS, read_target


@pytest.mark.parametrize(
    ("name", "count", "tflops"),
    [("v5e:4x4", 16, 197), ("v5p:2x2x2", 8, 459), ("v6e:8x8", 64, 918), ("h100:8", 8, 989), ("H100:2x8", 16, 989)],
)
def test_a_name_gives_devices_and_their_peak(name: str, count: int, tflops: float):
    target = read_target(name)
    assert (target.count, target.peak, len(target.stand_ins())) == (count, tflops * 1e12, count)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5f:4x4", "no such kind of device; valid are v5e, v5p, v6e, a100, h100, h200"),
        ("h10:8", "did you mean 'h100'"),
        ("v5e:3x3", "no topology 3x3; nearest are v5e:2x4 and v5e:4x4"),
        ("v5e:32x32", "no topology 32x32; nearest are v5e:16x16"),
        ("v5e", "no topology without a shape; nearest are v5e:2x2 and v5e:16x16"),
        ("v5p:4x4", "no topology 4x4; nearest are v5p:2x2x4 and v5p:2x4x4"),
        ("h100:12", "a node has at most 8; nearest is h100:2x8"),
        ("h100:0", "0 is no number of GPUs"),
        ("h100:two", "two is no number of GPUs"),
    ],
)
def test_another_name_is_answered_with_the_nearest(name: str, message: str):
    with pytest.raises(UsageError, match=message):
        read_target(name)


def test_every_topology_is_read():
    names = [f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.topologies]
    counts = [read_target(name).count for name in names]
    assert names and min(counts) > 1 and max(counts) == 4096


def test_nodes_are_joined_by_their_network():
    two, chip = read_target("h100:2x8"), CHIPS["h100"]
    assert [two.speed(1, 8), two.speed(2, 4), two.speed(8, 2), two.speed(1, 16)] == [chip.link] * 2 + [chip.network] * 2


def test_an_axis_of_16_chips_is_a_ring():
    assert read_target("v5e:16x16").speed(1, 16) == 2 * read_target("v5e:4x4").speed(1, 4)


def test_jax_takes_a_part_of_a_gpus_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert read_target("h100:1").memory == 0.75 * CHIPS["h100"].memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    assert read_target("h100:1").memory == 0.95 * CHIPS["h100"].memory
    assert read_target("v5e:2x2").memory == CHIPS["v5e"].memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "all")
    with pytest.raises(UsageError, match="XLA_PYTHON_CLIENT_MEM_FRACTION is 'all'"):
        _ = read_target("h100:1").memory
