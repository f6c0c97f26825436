"""What a training step takes on a mesh, from the model's shapes alone: memory, what devices send, and time at best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from jax.sharding import AbstractMesh

from jaxgpt.mesh import Sizes, parameter_spec
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.objectives.cross_entropy import MOST_PARTS, PART_BYTES
from jaxgpt.parallel import AXES, DATA, FSDP, TENSOR
from jaxgpt.plan.targets import Target
from jaxgpt.train.budget import flops_per_token

LANES = 128
"""Numbers in a row of a TPU's registers."""


@dataclass(frozen=True)
class Work:
    """A training step.

    Attributes:
        config: the model's.
        rows: of a micro-batch, over all devices.
        length: T.
        accumulate: micro-batches in an update.
        width: bytes of an activation.
        remat: see `RunConfig`.
        kernel: whether attention is a kernel, which holds no scores.
        platform: "cpu", "gpu" or "tpu", whose compilers keep different things for the backward pass.
    """

    config: GPTConfig
    rows: int
    length: int
    accumulate: int = 1
    width: int = 2
    remat: bool = False
    kernel: bool = True
    platform: str = "tpu"

    @property
    def keeps_weights(self) -> bool:
        """Whether weights that are gathered stay for the backward pass, although the step asks otherwise."""
        return self.platform == "cpu"

    @property
    def head_padding(self) -> float:
        """How many times as long as their heads the rows are of arrays that attention's kernel reads and writes."""
        lanes = LANES if self.kernel and self.platform == "tpu" else 1
        return -(-self.config.head_dim // lanes) * lanes / self.config.head_dim

    def kept_share(self, mesh: Sizes) -> float:
        """Return the share of a block's arrays that is kept although remat would have them computed again.

        XLA for CPU and for several GPUs moves what is computed again to where it was computed first. For 8 H100 it does
        so with all of it where nothing else is sent in a block, and with about three fifths where weights are gathered.
        """
        if not self.remat or self.platform == "cpu":
            return 1.0
        if self.platform != "gpu" or mesh == Sizes():
            return 0.0
        return 0.6 if mesh.fsdp > 1 else 1.0

    @property
    def tokens(self) -> int:
        """In an update."""
        return self.rows * self.length * self.accumulate

    @property
    def flops(self) -> int:
        """Of an update, on all devices; what remat repeats is not counted, as in MFU."""
        return flops_per_token(self.config, self.length) * self.tokens


def memory(work: Work, mesh: Sizes) -> dict[str, float]:
    """Return the bytes that a device holds at most, by what they are.

    A block keeps 17 arrays of a width of D for its backward pass: two inputs of layer norms and their two results; and
    divided by `tensor` q, k, v, attention's result as it comes and as it is multiplied, and the feed-forward layer
    before and behind its activation. With remat it keeps its input, and one block at a time, behind the loss, the rest.
    A TPU pads the four that its kernel reads and writes to whole rows of its registers: heads of 64 take twice their
    bytes.
    """
    config, tensor = work.config, mesh.tensor
    parts = _parts(config, mesh)
    held = sum(part.local for part in parts)
    table = config.vocab_size * config.n_embd / tensor
    own = work.rows // mesh.own * work.length
    divided = (1 + 4 * work.head_padding) * config.n_embd + 2 * config.inner_dim
    block = own * work.width * (4 * config.n_embd + divided / tensor)
    scores = own * config.n_head / tensor * work.length
    block += 4 * own * config.n_head / tensor  # the scores' log-sum-exp
    block += 2 * own * config.n_embd * (config.resid_pdrop > 0)  # dropout's masks
    kept = own * work.width * config.n_embd
    share = work.kept_share(mesh)
    activations = config.n_layer * (kept + share * (block - kept))
    logits = 4 * own * config.vocab_size / tensor
    loss = 2 * logits / min(max(-(-logits // PART_BYTES), 1), MOST_PARTS, work.length)
    again, temporary = (1 - share) * block, 0.0
    if not work.kernel:
        temporary += 3 * scores  # a quarter of the queries, in f32, three times
        temporary += 5 * scores * (config.attn_pdrop > 0)  # a layer's random bits: 8 bytes for 5/8 of the scores
    if mesh.fsdp > 1 or tensor > 1:
        # Both ends of the model share the table, whose gradient is there before it is scattered or exchanged.
        temporary += 4 * table
    if mesh.fsdp > 1:
        loss += work.width * table
        blocks = work.width * sum(part.size for part in parts if part.in_block and FSDP in part.axes)
        temporary += blocks if work.keeps_weights else 0
        again += 0 if work.keeps_weights else blocks / config.n_layer
    temporary += max(loss, again)  # the one is gone before the other comes
    gradients = 4.0 * held
    if mesh.fsdp == tensor == 1 and work.platform != "tpu":  # TPUs put off to the end what is done with them
        # They take the places of activations, but for the table's, which is there first.
        gradients = max(4 * table, gradients - activations)
    return {
        "parameters": 4 * held,
        "optimizer": 8 * held,
        "batch": 12.0 * own * work.accumulate,
        "gradients": 4 * held * (work.accumulate > 1) + gradients,
        "activations": activations,
        "temporary": temporary,
    }


class Sent(NamedTuple):
    """What a device sends in an update at least.

    Attributes:
        kind: of the collective, as XLA names it.
        axis: of the mesh, round which it goes.
        bytes: that go out.
    """

    kind: str
    axis: str
    bytes: float


def sent(work: Work, mesh: Sizes) -> list[Sent]:
    """Return what a device has to send in an update, round a ring.

    Gradients are summed over data in f32; with fsdp weights are gathered in the compute dtype, once more for the
    backward pass in the blocks, and gradients scattered in f32, both in each micro-batch; with tensor each layer sums
    activations twice on the way there and twice on the way back, and remat repeats attention's. Embeddings are
    gathered, the gradient of the head's input is summed, and so are three numbers of each token's logits. Parts of
    `c_attn` and of the head, which can't be divided as they are used, are exchanged.
    """
    config, times = work.config, work.accumulate
    gathered = scattered = summed = shared = exchanged = 0.0
    for part in _parts(config, mesh):
        twice = part.in_block and not work.keeps_weights
        if FSDP in part.axes:
            gathered += (2 if twice else 1) * work.width * part.size * _round(mesh.fsdp) * times
            scattered += 4 * part.size * _round(mesh.fsdp) * times
            summed += 8 * part.local * _round(mesh.data)
        else:
            shared += 8 * part.local * _round(mesh.own)
        exchanged += ((2 if part.in_block else 1) * work.width + 4) * part.exchanged * _round(mesh.tensor) * times
    own, around = work.rows // mesh.own * work.length, _round(mesh.tensor)
    vector = config.n_embd * work.width
    sums = own * (vector * (config.n_layer * (4 + work.remat) + 1) + 3 * 4) * 2 * around
    places = work.length if config.position_embedding == "learned" else 0
    found = [
        Sent("all-gather", FSDP, gathered),
        Sent("reduce-scatter", FSDP, scattered),
        Sent("all-reduce", DATA, summed),
        Sent("all-reduce", DATA if mesh.data > 1 else FSDP, shared),
        Sent("all-gather", TENSOR, (own + places) * vector * around * times),
        Sent("all-reduce", TENSOR, sums * times),
        Sent("all-to-all", TENSOR, exchanged),
    ]
    return [one for one in found if one.bytes]


def seconds(work: Work, mesh: Sizes, target: Target) -> dict[str, float]:
    """Return how long the parts of an update take at best: products, what passes through memory, and what is sent.

    A product takes its arithmetic at the peak, or its operands and result at the memory's speed, whichever is longer.
    Element-wise passes read and write memory. Attention counts as in `flops_per_token`, masked scores included.
    """
    config, tensor, width = work.config, mesh.tensor, work.width
    d, f, own = map(float, (config.n_embd, config.inner_dim, work.rows // mesh.own * work.length))
    peak, bandwidth = target.peak * (2 / width), target.chip.bandwidth  # in f32 half of it, as of TF32

    def product(rows: float, inner: float, columns: float) -> float:
        moved = width * (rows * inner + inner * columns + rows * columns)
        return max(2 * rows * inner * columns / peak, moved / bandwidth)

    shapes = ((d, 3 * d / tensor), (d / tensor, d), (d, f / tensor), (f / tensor, d))
    forward = sum(product(own, *shape) for shape in shapes)
    attention = 4 * own * work.length * d / tensor / peak
    passes = 3 + work.remat
    products = config.n_layer * passes * (forward + attention) + 3 * product(own, d, config.vocab_size / tensor)
    # A block's layer norms, residual sums and activation; an f32 logit is written once and read twice.
    moved = config.n_layer * passes * own * width * (10 * d + 2 * f / tensor) + 12 * own * config.vocab_size / tensor
    if not work.kernel:
        moved += config.n_layer * passes * 8 * own * config.n_head / tensor * work.length
    held = sum(part.local for part in _parts(config, mesh))
    update = 28 * held + (12 * held * work.accumulate if work.accumulate > 1 else 0)
    inner: dict[str, int] = {TENSOR: 1, FSDP: tensor, DATA: tensor * mesh.fsdp}
    size: dict[str, int] = dict(zip(AXES, mesh, strict=True))
    links = dict.fromkeys(("in the way", "beside"), 0.0)
    for one in sent(work, mesh):
        links["in the way" if one.axis == TENSOR else "beside"] += one.bytes / target.speed(
            inner[one.axis], size[one.axis]
        )
    return {
        "products": work.accumulate * products,
        "memory": work.accumulate * moved / bandwidth,
        "optimizer": update / bandwidth,
        "sent in the way": links["in the way"],
        "sent beside": links["beside"],
    }


def step_seconds(parts: dict[str, float]) -> float:
    """Return an update's time: collectives of weights and gradients run beside the arithmetic, all else in turn."""
    busy = parts["products"] + parts["memory"] + parts["sent in the way"]
    return max(busy, parts["sent beside"]) + parts["optimizer"]


def _round(count: int) -> float:
    return (count - 1) / count


class _Part(NamedTuple):
    """A parameter's numbers along one line of `fsdp`, those of one device, what divides them, and those exchanged."""

    in_block: bool
    size: float
    local: float
    axes: frozenset[str]
    exchanged: float


@cache
def _parts(config: GPTConfig, mesh: Sizes) -> tuple[_Part, ...]:
    """Return how a mesh divides each parameter."""
    sizes, found = dict(zip(AXES, mesh, strict=True)), []
    abstract = AbstractMesh(tuple(mesh), AXES)
    head = "wte" if config.tie_word_embeddings else "lm_head"
    for parameter in parameters(config):
        spec = parameter_spec(abstract, parameter)
        names = {name for axis in spec for name in (axis if isinstance(axis, tuple) else (axis,)) if name}
        axes = frozenset(name for name in names if sizes[name] > 1)
        size = math.prod(parameter.shape) / (mesh.tensor if TENSOR in axes else 1)
        local = size / (mesh.fsdp if FSDP in axes else 1)
        in_block, is_head = "{i}" in parameter.row.path, parameter.path[0] == head
        both = any(isinstance(axis, tuple) for axis in spec)
        exchanged = local if both and in_block else size if both and is_head else 0.0
        found.append(_Part(in_block, size, local, axes, exchanged))
    return tuple(found)
