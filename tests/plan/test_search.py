"""The search: every mesh divides, the best is the fastest that fits, and what divides nothing is answered."""

from dataclasses import replace

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.mesh import Sizes
from jaxgpt.model.config import GPTConfig
from jaxgpt.plan.costs import Work
from jaxgpt.plan.search import estimate, estimates, meshes
from jaxgpt.plan.targets import read_target

XL = replace(GPTConfig.preset("gpt2-xl"), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
GPT2 = replace(GPTConfig(), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def test_all_meshes_divide_devices_rows_and_heads():
    found = list(meshes(GPT2, 16, 8))
    assert len(set(found)) == len(found)
    assert set(found) == {
        Sizes(data, fsdp, tensor)
        for data in range(1, 17)
        for fsdp in range(1, 17)
        for tensor in range(1, 17)
        if data * fsdp * tensor == 16 and 8 % (data * fsdp) == 0 and 12 % tensor == 0 and 3072 % tensor == 0
    }


def test_the_best_mesh_is_the_fastest_of_those_that_fit():
    target, work = read_target("v5e:4x4"), Work(XL, 32, 1024, remat=True)
    each = [estimate(work, target, mesh) for mesh in meshes(XL, target.count, work.rows)]
    fitting = [one for one in each if one.fits]
    assert 0 < len(fitting) < len(each)
    best = estimates(work, target)[0]
    assert best.fits and best.step == min(one.step for one in fitting)


def test_where_nothing_fits_the_smallest_comes_first():
    found = estimates(Work(XL, 4096, 1024), read_target("v5e:2x2"))
    assert not any(one.fits for one in found)
    assert found[0].bytes == min(one.bytes for one in found)


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        (7, {}, "batch_size 7 can't be divided among 4 devices; nearest are 4 and 8"),
        (12, {"tensor": 1}, "batch_size 12 can't be divided among 16 devices; nearest are 16"),
        (2, {"fsdp": 4}, "batch_size 2 can't be divided among 4 devices; nearest are 4"),
        (16, {"tensor": 8}, "tensor 8 does not divide n_head 12; it may be 4"),
        (16, {"tensor": 3}, "tensor 3 does not divide 16 devices; it may be 2 or 4"),
        (16, {"fsdp": 3}, "fsdp 3 does not divide 16 devices; it may be 2 or 4"),
        (16, {"fsdp": 8, "tensor": 4}, "fsdp 8 does not divide the 4 devices that tensor 4 leaves of 16; it may be 4"),
    ],
)
def test_what_divides_nothing_is_answered_with_the_nearest(rows: int, asked: dict[str, int], message: str):
    with pytest.raises(UsageError, match=f"^{message}$"):
        estimates(Work(GPT2, rows, 1024), read_target("v5e:4x4"), **asked)


@pytest.mark.parametrize("asked", [{"fsdp": 1}, {"fsdp": 4}, {"tensor": 2}, {"fsdp": 1, "tensor": 1}])
def test_what_is_asked_for_is_kept_and_the_rest_searched(asked: dict[str, int]):
    found = [one.mesh for one in estimates(Work(GPT2, 16, 1024), read_target("v5e:4x4"), **asked)]
    whole = meshes(GPT2, 16, 16)
    assert set(found) == {mesh for mesh in whole if all(getattr(mesh, axis) == size for axis, size in asked.items())}
    assert (len(found) == 1) == (len(asked) == 2)
