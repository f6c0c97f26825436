"""Computed costs: the compiler's memory, and figures that grow as their formulas do."""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest

from jaxgpt.model.atlas import count, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.plan.costs import Sizes, Work, memory, seconds, sent, step_seconds
from jaxgpt.plan.targets import read_target
from jaxgpt.train.budget import flops_per_token
from tests import processes

RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
GPT2 = replace(GPTConfig(), **RATES)
WORK = Work(GPT2, rows=64, length=1024)
# Models and meshes of eight devices, in f32.
STEPS = {
    "tiny, fsdp 8": (GPTConfig(2048, 128, n_embd=128, n_layer=2, n_head=4, **RATES), 32, Sizes(1, 8, 1)),
    "medium, data 8": (GPTConfig(4096, 256, n_embd=256, n_layer=2, n_head=8, **RATES), 16, Sizes(8, 1, 1)),
    "wide vocabulary, tensor 4": (GPTConfig(8191, 64, n_embd=128, n_layer=1, n_head=4, **RATES), 8, Sizes(2, 1, 4)),
    "narrow, mixed": (GPTConfig(1024, 128, n_embd=192, n_layer=2, n_head=6, **RATES), 16, Sizes(2, 2, 2)),
}
COMPILE = """
import json, os, sys
from benchmarks.collectives import compile_step
from tests.plan.test_costs import STEPS
for config, rows, mesh in STEPS.values():
    axes = {"fsdp": mesh.fsdp, "tensor": mesh.tensor}
    step = {"rows": rows, "length": config.n_positions, "dtype": "float32", "remat": False}
    found = compile_step(mesh=axes, config=config, **step).memory_analysis()
    print(json.dumps([found.argument_size_in_bytes, found.temp_size_in_bytes]))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[int, int]]:
    """Bytes of a device that the compiler holds as state, and beside it, without tests' cheaper compilation."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", COMPILE]
    done = processes.run(command, cwd=root, env={**os.environ, **flags}, stdout=PIPE, text=True, check=True)
    return dict(zip(STEPS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_memory_is_about_the_compilers(compiled, name: str):
    config, rows, mesh = STEPS[name]
    held = memory(Work(config, rows, config.n_positions, width=4, kernel=False, platform="cpu"), mesh)
    state, temporary = compiled[name]
    assert held["parameters"] + held["optimizer"] + held["batch"] == pytest.approx(state, rel=0.01)
    assert sum(held.values()) == pytest.approx(state + temporary, rel=0.15)


def total(work: Work, mesh: Sizes) -> float:
    return sum(one.bytes for one in sent(work, mesh))


def test_arithmetic_is_the_models():
    assert WORK.flops == 64 * 1024 * flops_per_token(GPT2, 1024)
    assert replace(WORK, accumulate=4).flops == replace(WORK, rows=256).flops == 4 * WORK.flops


def test_one_device_sends_nothing_and_holds_all():
    held, weights = memory(WORK, Sizes()), count(GPT2)["total"]
    assert sent(WORK, Sizes()) == []
    assert [held[name] for name in ("parameters", "optimizer", "gradients")] == [4 * weights, 8 * weights, 4 * weights]


def test_data_sums_each_gradient_once_an_update():
    """2 (n - 1) / n of the gradients in f32, however many micro-batches and rows there are."""
    expected = 8 * count(GPT2)["total"] * 7 / 8
    for work in (WORK, replace(WORK, accumulate=4), replace(WORK, rows=128)):
        assert total(work, Sizes(8)) == pytest.approx(expected)


def test_fsdp_gathers_and_scatters_in_each_micro_batch():
    """A gather for each direction in bf16, of tables one, and a scatter in f32: (n - 1) / n of each; not of vectors."""
    bytes_by_kind = {one.kind: one.bytes for one in sent(WORK, Sizes(fsdp=8))}
    matrices = sum(math.prod(one.shape) for one in parameters(GPT2) if len(one.shape) == 2)
    tables = (GPT2.vocab_size + GPT2.n_positions) * GPT2.n_embd
    assert bytes_by_kind["reduce-scatter"] == pytest.approx(4 * matrices * 7 / 8)
    assert bytes_by_kind["all-gather"] == pytest.approx(2 * (2 * matrices - tables) * 7 / 8)
    more = {one.kind: one.bytes for one in sent(replace(WORK, accumulate=4), Sizes(fsdp=8))}
    assert more["reduce-scatter"] == 4 * bytes_by_kind["reduce-scatter"]
    assert more["all-reduce"] == bytes_by_kind["all-reduce"]


def test_tensor_sums_activations_four_times_a_layer_and_the_heads_inputs_and_remat_attentions_again():
    def sums(work: Work) -> float:
        return sum(
            one.bytes for one in sent(work, Sizes(tensor=4)) if one.kind == "all-reduce" and one.axis == "tensor"
        )

    activations, of_logits = 64 * 1024 * 768 * 2, 64 * 1024 * 3 * 4
    assert sums(WORK) == pytest.approx(2 * 3 / 4 * ((12 * 4 + 1) * activations + of_logits))
    assert sums(replace(WORK, remat=True)) == pytest.approx(sums(WORK) + 2 * 3 / 4 * 12 * activations)


@pytest.mark.parametrize("tied", [True, False])
def test_tensor_divides_tables_and_logits_and_exchanges_the_head(tied: bool):
    config = replace(GPT2, n_layer=1, tie_word_embeddings=tied)
    work, four = Work(config, 8, 1024), Sizes(tensor=4)
    table, vectors = config.vocab_size * config.n_embd, config.n_embd * (8 * 1024 + 1024)
    bytes_by_kind = {one.kind: one.bytes for one in sent(work, four)}
    # The head there in bf16 and back in f32; and c_attn, of which remat would send the first once more.
    assert bytes_by_kind["all-to-all"] == pytest.approx(3 / 4 / 4 * (6 * table + 8 * 3 * 768**2))
    assert bytes_by_kind["all-gather"] == pytest.approx(3 / 4 * 2 * vectors)
    one, divided = memory(work, Sizes()), memory(work, four)
    for name in ("parameters", "optimizer", "gradients"):
        assert divided[name] == pytest.approx(one[name] / 4, rel=0.001)
    logits = 12 * 3 / 4 * 8 * 1024 * config.vocab_size / read_target("v5e:2x2").chip.bandwidth
    saved = (
        seconds(work, Sizes(), read_target("v5e:2x2"))["memory"] - seconds(work, four, read_target("v5e:2x2"))["memory"]
    )
    assert saved > logits


def test_devices_along_fsdp_divide_the_state_and_all_devices_the_rows():
    one, eight = memory(WORK, Sizes()), memory(WORK, Sizes(fsdp=8))
    for name in ("parameters", "optimizer", "gradients"):
        assert one[name] / 8 <= eight[name] <= 1.01 * one[name] / 8
    assert eight["activations"] == one["activations"] / 8 == memory(WORK, Sizes(8))["activations"]


def test_remat_keeps_an_array_a_layer():
    saved = memory(WORK, Sizes())["activations"] - memory(replace(WORK, remat=True), Sizes())["activations"]
    assert saved > 0.8 * memory(WORK, Sizes())["activations"]


@pytest.mark.parametrize("kind", ["data", "fsdp"])
def test_bytes_a_device_stay_as_devices_and_rows_grow(kind: str):
    """Weak scaling: with as many rows a device, what each sends approaches a bound and never passes it."""
    found = [total(Work(GPT2, 8 * n, 1024), Sizes(**{kind: n})) for n in (2, 4, 16, 64, 256)]
    assert found == sorted(found) and found[-1] < 2 * found[0] * 256 / 255


def test_no_time_is_shorter_than_the_arithmetic_takes():
    for name, mesh in (("h100:8", Sizes(8)), ("v5e:2x4", Sizes(1, 8)), ("v5e:2x4", Sizes(2, 2, 2))):
        target = read_target(name)
        parts = seconds(WORK, mesh, target)
        assert step_seconds(parts) >= WORK.flops / (target.count * target.peak) * 0.999
        assert step_seconds({**parts, "sent beside": 1e6}) == 1e6 + parts["optimizer"]
