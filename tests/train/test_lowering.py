"""The step, lowered for a GPU or a TPU, neither of which has to be here: what it calls, multiplies and keeps."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.export import DisabledSafetyCheck, export

from jaxgpt.chat.examples import Pairs
from jaxgpt.data.batches import Batch
from jaxgpt.mesh import make_mesh, put_batch
from jaxgpt.model.atlas import parameters
from jaxgpt.model.attention_kernels import cudnn_works
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.objectives.preferences import dpo, reward
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train import step as training_step
from jaxgpt.train.trainer import Trainer

B, T = 2, 256  # twice the lanes in which a TPU keeps a row's sum
RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CONFIG = GPTConfig(31, T, n_embd=128, n_layer=1, n_head=2, labels=("value",), **RATES)
CUDNN = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
CUDNN_MASKED = ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
PALLAS = ["tpu_custom_call"] * 3  # forwards; backwards to keys and values, and to queries
KERNELS = {"cuda": CUDNN, "tpu": PALLAS}
PACKED_KERNELS = {"cuda": CUDNN_MASKED, "tpu": PALLAS}


@pytest.fixture(autouse=True)
def cudnn_by_name(monkeypatch: pytest.MonkeyPatch, unchecked_types: None) -> Iterator[None]:
    """JAX asks cuDNN for its version before it writes calls of it into a program; here the answer is given for it."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    cudnn_works.cache_clear()
    yield
    cudnn_works.cache_clear()


def ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(31, size=shape, dtype=np.int32)


def rows(count: int = B, **more: np.ndarray) -> Batch:
    return Batch(ids(count, T), ids(count, T), np.ones((count, T), np.float32), **more)


def packed() -> Batch:
    places = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return rows(positions=places % 64, segment_ids=places // 64)


def pairs() -> Pairs:
    ones = np.ones((B // 2, 2, T), np.float32)
    return Pairs(ids(B // 2, 2, T), ids(B // 2, 2, T), ones, ids(B // 2, 2), ones[:, 0, 0], ones[:, :, 0])


class Lowered:
    """A training step's program for a platform.

    Attributes:
        text: the program.
        leaves: of the state and of the batch.
    """

    def __init__(
        self, platform: str, config: GPTConfig, objective: Objective, batch: Any, *, accumulate: int = 1
    ) -> None:
        flags = PretrainConfig(batch_size=B, gradient_accumulation_steps=accumulate)
        mesh, own = make_mesh(), tuple(parameters(config))
        trainer = Trainer(flags, mesh, config=config, objective=objective, parameters=own)
        known = [DisabledSafetyCheck.custom_call(name) for name in (*CUDNN, *CUDNN_MASKED)]
        step = export(trainer.step.jitted, platforms=[platform], disabled_checks=known)
        self.text = step(trainer.abstract, put_batch(mesh, batch)).mlir_module()
        self.leaves = [len(jax.tree.leaves(tree)) for tree in (trainer.abstract, batch)]

    @property
    def calls(self) -> list[str]:
        """The attention kernels that are called, in their order."""
        return [
            name
            for name in re.findall(r"stablehlo\.custom_call @([\w$]+)", self.text)
            if name in (*CUDNN, *CUDNN_MASKED, *PALLAS)
        ]

    @property
    def multiplied(self) -> set[str]:
        """The dtypes of matrix products' operands."""
        shapes = re.findall(r"stablehlo\.dot_general .*: \((tensor<\S+>), (tensor<\S+>)\)", self.text)
        assert len(shapes) == self.text.count("stablehlo.dot_general")
        return {shape.strip("<>").split("x")[-1] for pair in shapes for shape in pair}

    @property
    def donated(self) -> list[bool]:
        """Of each argument, whether its memory becomes that of a result."""
        signature = re.search(r"func\.func public @main\((.*?)\) -> ", self.text, re.DOTALL)
        assert signature is not None
        return ["tf.aliasing_output" in one for one in re.split(r"%arg\d+: ", signature[1])[1:]]


@pytest.mark.parametrize(("platform", "remat"), [("cuda", False), ("cuda", True), ("tpu", False)])
def test_the_step_calls_the_platforms_kernel_and_holds_no_scores(platform: str, remat: bool):
    step = Lowered(platform, CONFIG, pretrain(GPT(CONFIG, jnp.bfloat16, remat)), rows())
    forwards = KERNELS[platform][:1]
    assert step.calls == forwards * remat + KERNELS[platform]
    assert f"tensor<{B}x{CONFIG.n_head}x{T}x{T}x" not in step.text


def test_a_gpu_waits_for_no_branch_and_copies_no_state_for_one(monkeypatch: pytest.MonkeyPatch):
    def branches() -> int:
        step = Lowered("cuda", CONFIG, pretrain(GPT(CONFIG, jnp.bfloat16)), rows())
        return len(re.findall(r"stablehlo\.(?:case|if)\b", step.text))

    on_cpu = branches()
    monkeypatch.setattr(training_step, "platform", lambda: "gpu")
    assert branches() == on_cpu - 1  # the others are on the platform, and no longer there once compiled


@pytest.mark.parametrize(("platform", "remat"), [("cuda", False), ("cuda", True), ("tpu", False)])
def test_so_it_does_on_packed_rows(platform: str, remat: bool):
    step = Lowered(platform, CONFIG, pretrain(GPT(CONFIG, jnp.bfloat16, remat)), packed())
    forwards = PACKED_KERNELS[platform][:1]
    assert step.calls == forwards * remat + PACKED_KERNELS[platform]
    assert f"tensor<{B}x{CONFIG.n_head}x{T}x{T}x" not in step.text
    assert not re.search(rf"\b{T}x{T}xf32", step.text)


@pytest.mark.parametrize("platform", KERNELS)
def test_in_f32_there_is_no_kernel(platform: str):
    step = Lowered(platform, CONFIG, pretrain(GPT(CONFIG)), rows())
    assert step.calls == []
    assert step.multiplied == {"f32"}


@pytest.mark.parametrize(
    ("platform", "what"),
    [
        *(("tpu", name) for name in ("plain", "packed")),
        *(("cuda", name) for name in ("plain", "thin", "packed", "dropout", "accumulated", "reward", "dpo")),
    ],
)
def test_the_bf16_step_multiplies_no_f32_and_holds_no_scores(platform: str, what: str):
    config = replace(CONFIG, attn_pdrop=0.1, resid_pdrop=0.1) if what == "dropout" else CONFIG
    config = replace(config, n_head=32) if what == "thin" else config  # heads of 4, for which there is no kernel
    model, accumulate, batch = GPT(config, jnp.bfloat16), 1, rows()
    objective = {"reward": reward(model), "dpo": dpo(model, beta=0.1)}.get(what, pretrain(model))
    if what in ("reward", "dpo"):
        batch = pairs()
    elif what == "packed":
        batch = packed()
    elif what == "accumulated":
        accumulate, batch = 2, rows(2 * B)
    step = Lowered(platform, config, objective, batch, accumulate=accumulate)
    assert step.multiplied == {"bf16"}
    assert f"tensor<{B}x{config.n_head}x{T}x{T}x" not in step.text
    assert (step.calls == []) == (what in ("thin", "dropout"))


@pytest.mark.parametrize("platform", KERNELS)
def test_the_whole_state_is_donated_and_the_batch_is_not(platform: str):
    step = Lowered(platform, CONFIG, pretrain(GPT(CONFIG, jnp.bfloat16)), rows())
    state, batch = step.leaves
    assert step.donated == [True] * state + [False] * batch
