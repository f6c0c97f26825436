"""A training step compiled for devices that aren't here, by the compilers that can: libtpu's, and XLA's for CUDA."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxgpt.data.batches import Batch
from jaxgpt.devices import compiling_for
from jaxgpt.errors import RunError
from jaxgpt.mesh import batch_sharding, make_mesh
from jaxgpt.model.attention_kernels import cudnn_works
from jaxgpt.plan.collectives import Collective, collectives
from jaxgpt.plan.targets import Target
from jaxgpt.train.trainer import Trainer

# What XLA asks a GPU about itself, of CUDA's description of its architecture; the rest differs from kind to kind.
_GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared} shared_memory_per_core: {shared_core}
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""
_AMPERE = {"major": 8, "cores": 108, "units": 64, "clock": 1.41, "cache": 40 * 2**20}
_AMPERE |= {"shared": 166912, "shared_core": 167936}
_HOPPER = {"major": 9, "cores": 132, "units": 128, "clock": 1.98, "cache": 50 * 2**20}
_HOPPER |= {"shared": 232448, "shared_core": 233472}
_ARCHITECTURES = {"NVIDIA A100": _AMPERE, "NVIDIA H100": _HOPPER, "NVIDIA H200": _HOPPER}
# Or else libtpu asks Google's cloud which machine this is, and warns that nobody says so.
_NO_TPU_HERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
_NO_TPU_HERE |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1"}
CUDNN = 91000
"""The version that a target's cuDNN is taken to have, as 9.10.0."""


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a step.

    Attributes:
        state: bytes of a device that are there before and after it: parameters, optimizer, batch.
        temporary: bytes that it takes besides.
        sent: its collectives.
        seconds: that compiling took.
    """

    state: float
    temporary: float
    sent: Sequence[Collective]
    seconds: float


def why_no_compiler(target: Target) -> str:
    """Return what is missing to compile for a target; empty if nothing is."""
    if target.chip.platform == "tpu":
        return "" if importlib.util.find_spec("libtpu") else "libtpu isn't installed: pip install 'jaxgpt[plan-tpu]'"
    if importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia.cu13"):
        return ""
    return "JAX's CUDA plugin or nvcc isn't installed: pip install 'jaxgpt[plan-gpu]'"


def target_topology(target: Target) -> Sequence[Any]:
    """Return a target's devices, for which programs can be compiled.

    Raises:
        RunError: the compiler doesn't know the target, or another process uses it.
    """
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    jax.devices("cpu")  # registers plugins
    try:
        if target.chip.platform == "tpu":
            return topologies.get_topology_desc(target.name.lower(), "tpu").devices
        chip = target.chip
        known = next(values for name, values in _ARCHITECTURES.items() if chip.kind.startswith(name))
        about = _GPU.format(**known, kind=chip.kind, memory=int(chip.memory), bandwidth=int(chip.bandwidth))
        nodes, gpus = target.shape
        return topologies.get_topology_desc("", "cuda", topology=f"1x{nodes}x{gpus}", target_config=about).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise RunError(f"--plan {target.name}: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def planning_for(target: Target, devices: Sequence[Any]) -> Iterator[None]:
    """Make programs for these devices of a target.

    Its cuDNN is taken to be there, where JAX would ask the one here for its version.
    """
    from jax._src.cudnn import fused_attention_stablehlo as stablehlo

    asked = stablehlo.check_cudnn_version
    cudnn_works.cache_clear()
    if target.chip.platform == "gpu":
        stablehlo.check_cudnn_version = lambda: CUDNN
    try:
        with compiling_for(devices):
            yield
    finally:
        stablehlo.check_cudnn_version = asked
        cudnn_works.cache_clear()


def compile_step(
    make_trainer: Callable[[Mesh], Trainer],
    *,
    fsdp: int,
    tensor: int,
    rows: int,
    length: int,
    devices: Sequence[Any] | None = None,
) -> Any:
    """Return the compiled training step on next tokens.

    Args:
        make_trainer: of a mesh.
        fsdp, tensor: the mesh's axes.
        rows: of a batch, over all devices and micro-batches.
        length: T.
        devices: None for those that programs are made for.
    """
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=devices)
    trainer = make_trainer(mesh)
    ids, place = np.zeros((rows, length), np.int32), batch_sharding(mesh)
    batch = Batch(ids, ids, np.ones(ids.shape, np.float32))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batch)
    return trainer.step.jitted.lower(trainer.abstract, batch).compile()


def compile_for(target: Target, make_trainer: Callable[[Mesh], Trainer], **step: Any) -> Compiled:
    """Return what the target's compiler makes of the step that `compile_step` describes.

    Raises:
        RunError: the compiler refuses it; a TPU's does so where it doesn't fit into memory.
    """
    began = time.monotonic()
    with planning_for(target, target_topology(target)):
        try:
            compiled = compile_step(make_trainer, **step)
        except jax.errors.JaxRuntimeError as error:
            raise RunError(f"--plan {target.name}: {str(error).splitlines()[0]}") from None
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = collectives(compiled.as_text())
    return Compiled(memory.argument_size_in_bytes, temporary, found, time.monotonic() - began)
