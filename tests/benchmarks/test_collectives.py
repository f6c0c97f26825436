"""What eight devices send each other in a step: about what they have to, and neither logits nor others' activations."""

import json
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from benchmarks.collectives import MESHES
from tests import processes

ROOT = Path(__file__).parents[2]
ROWS, LENGTH, VOCAB = 16, 48, 512  # no other axis is as long
ACCUMULATED = ("data 8", "data 2, fsdp 2, tensor 2")
CALLS = """
import json, sys
from benchmarks.collectives import main
for words in json.loads(sys.argv[1]):
    main(words)
"""


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    """What is sent on each mesh, and then in micro-batches on two of them."""
    words = ["--json", "--model=tiny", f"--rows={ROWS}", f"--length={LENGTH}", "--dtype=float32"]
    calls = [words, [*words, "--accumulate=2", *ACCUMULATED]]
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    result = processes.run(command, cwd=ROOT, stdout=PIPE, text=True, check=True)
    return list(map(json.loads, result.stdout.splitlines()))


@pytest.fixture(scope="module")
def steps(measured) -> dict[str, dict]:
    return {one["mesh"]: one for one in measured[: len(MESHES)]}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_devices_send_hardly_more_than_they_have_to(steps, mesh: str):
    assert 0 < steps[mesh]["bytes"] <= 1.2 * steps[mesh]["ideal"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_no_logits_are_sent_and_no_activations_of_more_rows_than_a_devices_own(steps, mesh: str):
    tensor = MESHES[mesh].get("tensor", 1)
    shapes = [shape for one in steps[mesh]["collectives"] for _, shape in one["arrays"]]
    assert not [shape for shape in shapes if len(shape) > 2 and {VOCAB, VOCAB // tensor} & set(shape)]
    activations = [shape for shape in shapes if len(shape) > 2 and LENGTH in shape]
    assert all(shape[0] <= ROWS * tensor // 8 for shape in activations)
    assert bool(activations) == (tensor > 1)


@pytest.mark.slow
def test_a_device_holds_its_part_of_the_state(steps):
    whole = steps["data 8"]["state"]
    assert steps["fsdp 8"]["state"] <= 1.15 * whole / 8
    assert steps["data 2, fsdp 2, tensor 2"]["state"] <= 1.1 * whole / 4


@pytest.fixture(scope="module")
def accumulated(measured) -> dict[str, dict]:
    return dict(zip(ACCUMULATED, measured[len(MESHES) :], strict=True))


@pytest.mark.slow
def test_micro_batches_are_added_up_before_devices_speak(accumulated):
    assert {one["times"] for one in accumulated["data 8"]["collectives"]} == {1}
    for step in accumulated.values():
        assert 0 < step["bytes"] <= 1.2 * step["ideal"]


@pytest.mark.slow
def test_in_each_micro_batch_gradients_are_scattered_and_only_then_summed(accumulated):
    """Over data once a step, a part of each; whole gradients would take the memory that fsdp saves."""
    found = accumulated["data 2, fsdp 2, tensor 2"]["collectives"]
    assert {one["times"] for one in found if one["kind"] == "reduce-scatter"} == {2}
    summed = [one for one in found if one["kind"] == "all-reduce" and ["f32", [VOCAB, 16]] in one["arrays"]]
    assert [(one["times"], one["group"]) for one in summed] == [(1, 2)]
