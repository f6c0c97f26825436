"""The mesh: eight devices train the same model as one, each holding its part, and read each other's checkpoints.

Eight host devices need a process of their own, which runs this file.
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxgpt.data.batches import Batch, random_batch
from jaxgpt.errors import UsageError
from jaxgpt.mesh import OwnRows, batch_divisor, make_mesh, put_batch
from jaxgpt.model.atlas import parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.parallel import AXES
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.manifest import Progress
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train.state import TrainState, init_params
from jaxgpt.train.step import gradient
from jaxgpt.train.trainer import Trainer
from tests import processes

ROOT = Path(__file__).parents[1]
# Without biases: those of the keys have no gradient but rounding, which AdamW would blow up to whole steps. With one
# dropout (each takes a while to compile), whose bits must not depend on the mesh.
RATES = {"embd_pdrop": 0.1, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
# The width is the context: parameters of one shape that lie differently on the mesh. Nothing divides the vocabulary.
CONFIG = GPTConfig(vocab_size=31, n_positions=16, n_embd=16, n_layer=1, n_head=4, bias=False, **RATES)
DEVICES = "--xla_force_host_platform_device_count=8"
MESHES = {
    "data 8": {},
    "fsdp 8": {"fsdp": 8},
    "data 4, tensor 2": {"tensor": 2},
    "data 2, fsdp 2, tensor 2": {"fsdp": 2, "tensor": 2},
    "fsdp 2, tensor 4": {"fsdp": 2, "tensor": 4},
    "tensor 4, untied": {"tensor": 4, "devices": 4, "tied": False},  # of eight
    # The tables' columns are divided by fsdp alone.
    "fsdp 2, tensor 4, narrow": {"fsdp": 2, "tensor": 4, "width": 12},
}
MODELS = {name: (mesh.get("tied", True), mesh.get("width", 16)) for name, mesh in MESHES.items()}
STEPS, LAST = 3, 20


def batches(step: int) -> Batch:
    return random_batch(np.arange(999) ** 2 % 31, seed=0, step=step, batch_size=16, block_size=8)


class Run(Trainer):
    """A run on all devices of this process."""

    def __init__(
        self, *, fsdp: int = 1, tensor: int = 1, devices: int | None = None, tied: bool = True, width: int = 16
    ) -> None:
        flags = PretrainConfig(max_iters=LAST, warmup_iters=2, batch_size=8, gradient_accumulation_steps=2, seed=0)
        config = replace(CONFIG, tie_word_embeddings=tied, n_embd=width)
        model = GPT(config)
        self.init_params = lambda shardings: init_params(model, seed=0, shardings=shardings)
        objective, rows = pretrain(model), tuple(parameters(config))
        super().__init__(
            flags,
            make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[:devices]),
            config=config,
            objective=objective,
            parameters=rows,
        )

    def train(self, state: TrainState, steps: range) -> tuple[TrainState, list[float]]:
        losses = []
        for i in steps:
            state, metrics = self.step(state, put_batch(self.mesh, batches(i)))
            losses.append(float(metrics.loss))
        return state, losses


def flat(tree) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def main(folder: Path) -> None:
    """Train on each mesh of eight devices, write down what came of it, and go on from the checkpoint of one device."""
    for name, mesh in MESHES.items():
        run = Run(**mesh)
        state, losses = run.train(run.start(run.init_params), range(STEPS))
        np.savez(folder / f"{name}.npz", **flat(state))
        checkpoints = Checkpoints(folder / name)
        checkpoints.save(state, Progress(STEPS))
        checkpoints.wait()
        parts = {key: leaf.addressable_shards[0].data.shape for key, leaf in flat(state).items()}
        placed = run.own_rows(run.config).place(jax.device_get(state.params))
        beside = {key: leaf.addressable_shards[0].data.shape for key, leaf in flat(placed).items()}
        end, rest = run.train(state, range(STEPS, LAST))
        np.savez(folder / f"{name}, at the end.npz", **flat(end.params))
        checkpoints = Checkpoints(folder / f"one, {MODELS[name]}")
        _, later = run.train(checkpoints.restore(run.abstract, STEPS), range(STEPS, STEPS + 1))
        result = {"losses": losses, "rest": rest, "later": later, "parts": parts, "beside": beside}
        result["divisor"] = batch_divisor(run.mesh)
        (folder / f"{name}.json").write_text(json.dumps(result))
    errors = []
    for wrong in ({"fsdp": 3}, {"tensor": 3}, {"fsdp": 4, "tensor": 4}, {"tensor": 8}):
        try:
            Run(**wrong)
        except UsageError as error:
            errors.append(str(error))
    (folder / "error").write_text("\n".join(errors))


@pytest.fixture(scope="module")
def one() -> dict[tuple[bool, int], Run]:
    """A run of each model on one device."""
    return {(tied, width): Run(tied=tied, width=width) for tied, width in sorted(set(MODELS.values()))}


@pytest.fixture(scope="module")
def trained(one: dict[tuple[bool, int], Run], tmp_path_factory):
    """The folder with all results; and by model, those of one device, after STEPS and at the end."""
    folder, begun, results = tmp_path_factory.mktemp("meshes"), {}, {}
    for model, run in one.items():
        begun[model] = run.train(run.start(run.init_params), range(STEPS))
        checkpoints = Checkpoints(folder / f"one, {model}")
        checkpoints.save(begun[model][0], Progress(STEPS))
        checkpoints.wait()
    processes.run(
        [sys.executable, "-m", "tests.test_mesh", folder],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {DEVICES}"},
        check=True,
    )
    for model, (state, losses) in begun.items():
        before = flat(jax.device_get(state))
        end, rest = one[model].train(state, range(STEPS, LAST))
        results[model] = before, losses, rest, flat(end.params)
    return folder, results


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_are_one(trained, name: str):
    folder, results = trained
    state, losses, *_ = results[MODELS[name]]
    result, states = json.loads((folder / f"{name}.json").read_text()), np.load(folder / f"{name}.npz")
    # f32 sums in another order.
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-6)
    assert set(states) == set(state)
    for key, leaf in state.items():
        np.testing.assert_allclose(states[key], leaf, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_are_one_after_many_steps(trained, name: str):
    folder, results = trained
    *_, losses, params = results[MODELS[name]]
    result, ours = json.loads((folder / f"{name}.json").read_text()), np.load(folder / f"{name}, at the end.npz")
    np.testing.assert_allclose(result["rest"], losses, rtol=0, atol=1e-5)
    assert set(ours) == set(params)
    for key, leaf in params.items():
        np.testing.assert_allclose(ours[key], leaf, rtol=0, atol=1e-5, err_msg=key)


KERNELS = {
    "wte": ("['wte']['embedding']", (31, 16)),
    "c_attn": ("['h_0']['attn']['c_attn']['kernel']", (16, 48)),
    "c_proj": ("['h_0']['attn']['c_proj']['kernel']", (16, 16)),
    "c_fc": ("['h_0']['mlp']['c_fc']['kernel']", (16, 64)),
    "ln_1": ("['h_0']['ln_1']['scale']", (16,)),
}


@pytest.mark.parametrize(
    ("name", "parts", "divisor"),
    [
        ("data 8", {}, 8),
        ("fsdp 8", {"wte": (31, 2), "c_attn": (2, 48), "c_proj": (16, 2), "c_fc": (2, 64)}, 8),
        ("data 4, tensor 2", {"wte": (31, 8), "c_attn": (8, 48), "c_proj": (8, 16), "c_fc": (16, 32)}, 4),
        ("tensor 4, untied", {"wte": (31, 4), "c_attn": (4, 48), "c_proj": (4, 16), "c_fc": (16, 16)}, 1),
        ("fsdp 2, tensor 4", {"wte": (31, 2), "c_attn": (2, 48), "c_proj": (4, 8), "c_fc": (8, 16)}, 2),
        ("data 2, fsdp 2, tensor 2", {"wte": (31, 4), "c_attn": (4, 48), "c_proj": (8, 8), "c_fc": (8, 32)}, 4),
        (
            "fsdp 2, tensor 4, narrow",
            {"wte": (31, 6), "c_attn": (6, 9), "c_proj": (3, 6), "c_fc": (6, 12), "ln_1": (12,)},
            2,
        ),
    ],
)
def test_each_device_holds_its_part_of_weights_and_moments(trained, name: str, parts: dict, divisor: int):
    folder, _ = trained
    result = json.loads((folder / f"{name}.json").read_text())
    assert result["divisor"] == divisor
    for kernel, (path, whole) in KERNELS.items():
        held = [tuple(part) for key, part in result["parts"].items() if key.endswith(path)]
        assert held == [parts.get(kernel, whole)] * 3, f"{kernel} and its two moments"
        assert tuple(result["beside"][path]) == held[0], "a reference or reward model lies as the policy does"


@pytest.mark.parametrize("name", MESHES)
def test_a_checkpoint_of_one_mesh_is_read_on_another(trained, one: dict[tuple[bool, int], Run], name: str):
    folder, run = trained[0], one[MODELS[name]]
    restored = Checkpoints(folder / name).restore(run.abstract, STEPS)
    states = np.load(folder / f"{name}.npz")
    for key, leaf in flat(restored).items():
        np.testing.assert_array_equal(leaf, states[key])
    _, [loss] = run.train(restored, range(STEPS, STEPS + 1))
    [other_way] = json.loads((folder / f"{name}.json").read_text())["later"]
    np.testing.assert_allclose(loss, other_way, rtol=1e-5)


def test_what_does_not_divide_the_devices_is_refused(trained):
    folder, *_ = trained
    assert (folder / "error").read_text().splitlines() == [
        "fsdp 3 does not divide 8 devices; it may be 2 or 4",
        "tensor 3 does not divide 8 devices; it may be 2 or 4",
        "fsdp 4 does not divide the 2 devices that tensor 4 leaves of 8; it may be 2",
        "tensor 8 does not divide n_head 4; it may be 4",
    ]
    for axes, message in (
        ({"fsdp": 2}, "fsdp 2 does not divide 1 devices; it may be 1"),
        ({"tensor": 0}, "tensor is 0; it must be a whole number from 1 up"),
        ({"fsdp": -1, "tensor": 1}, "fsdp is -1; it must be a whole number from 1 up"),
    ):
        with pytest.raises(UsageError, match=f"^{message}$"):
            make_mesh(**axes)


def counted(jaxpr: Any, name: str) -> int:
    """Return how often a primitive stands in a program and in those that it calls."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    parts = [part for one in getattr(jaxpr, "eqns", ()) for part in one.params.values()]
    return sum(one.primitive.name == name for one in getattr(jaxpr, "eqns", ())) + sum(counted(p, name) for p in parts)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.usefixtures("unchecked_types")  # of a mesh whose devices aren't here
def test_weights_of_blocks_are_gathered_for_each_pass_and_not_kept(remat: bool):
    mesh = AbstractMesh((1, 8, 1), AXES)
    shapes = tuple(parameters(CONFIG))
    rows = OwnRows(mesh, shapes, "float32")
    take = rows.gradient(gradient, pretrain(GPT(CONFIG, remat=remat)))
    params = tree_of(shapes, lambda one: jax.ShapeDtypeStruct(one.shape, np.float32))
    jaxpr = jax.make_jaxpr(partial(take, key=None))(params, {}, batches(0)).jaxpr
    matrices = [one for one in shapes if len(one.shape) == 2]
    in_blocks = [one for one in matrices if "{i}" in one.row.path]
    assert counted(jaxpr, "all_gather") == len(matrices) + len(in_blocks)
    assert counted(jaxpr, "reduce_scatter") == len(matrices)


def test_sums_over_rows_and_columns_of_chips_are_the_sums_over_all():
    """As on a TPU of eight chips and of sixteen; each device has its part."""
    code = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from types import SimpleNamespace
from jaxgpt.devices import compiling_for
from jaxgpt.mesh import make_mesh
from jaxgpt.parallel import FSDP, _scattered
x = jnp.arange(16 * 48 * 3.0).reshape(-1, 3) % 97
def scattered(count):
    mesh = make_mesh(fsdp=count, devices=jax.devices()[:count])
    return jax.jit(jax.shard_map(lambda x: _scattered(x), mesh=mesh, in_specs=P(FSDP), out_specs=P(FSDP)))(x)
for count, sums in ((8, 1), (16, 2)):
    with compiling_for((SimpleNamespace(platform="tpu"),)):
        there = jax.make_jaxpr(lambda: scattered(count))(), scattered(count)
    assert str(there[0]).count("reduce_scatter[") == sums
    assert (there[1] == scattered(count)).all() and (there[1] == x.reshape(count, -1, 3).sum(0)).all()
"""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=16"}
    processes.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **flags}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
