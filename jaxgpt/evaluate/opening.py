"""A model by path or name, opened and placed on all devices."""

from __future__ import annotations

from typing import Any

from jaxgpt.devices import in_host_memory
from jaxgpt.evaluate.scoring import Scorer
from jaxgpt.hf.convert import cut_padding
from jaxgpt.mesh import make_mesh
from jaxgpt.model.quantized import quantize as quantized
from jaxgpt.runs.weights import open_model


def open_scorer(
    source: str,
    *,
    checkpoint: Any = None,
    allow_pickle: bool = False,
    ignore_config_change: bool = False,
    quantize: Any = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    fsdp: int = 1,
    tensor: int = 1,
) -> Scorer:
    """Open a model without rows that pad its vocabulary, so that its figures are those of its export.

    Args:
        source, checkpoint, allow_pickle, ignore_config_change: see `open_model`.
        quantize: "int8", "int4" or "w8a8", as `jaxgpt.model.quantized.quantize` says; None for floats.
        batch_size, dtype: see `Scorer`.
        fsdp, tensor: see `make_mesh`.

    Raises:
        UsageError: see `open_model`, `Scorer` and `make_mesh`.
    """
    with in_host_memory(shared=fsdp * tensor > 1):
        config, params, tokenizer = open_model(
            source, checkpoint=checkpoint, allow_pickle=allow_pickle, ignore_config_change=ignore_config_change
        )
    config, params = cut_padding(config, params, tokenizer.vocab_size)
    return Scorer(
        config,
        params if quantize is None else quantized(params, quantize),
        tokenizer,
        batch_size=batch_size,
        dtype=dtype,
        mesh=make_mesh(fsdp=fsdp, tensor=tensor),
    )
