"""The door through which others' weights come in: values that are not finite stop there, whatever holds them."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from safetensors.numpy import load_file, save_file

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.hf.peft import load_adapters, save_adapters
from jaxgpt.hf.tensors import Tensor, read_values
from jaxgpt.model.atlas import parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.lora import adapter_parameters
from jaxgpt.model.lora_config import LoRA

# The last ones are large enough for XLA to use several threads or wide registers.
SHAPES = [(), (1,), (64,), (768, 768), (4_097, 257)]


def tensor(values: np.ndarray) -> Tensor:
    return Tensor("x", Path("file"), values.shape, "F32", values.copy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_not_finite_is_refused_wherever_it_stands(shape, dtype):
    good = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    largest = float(jnp.finfo(dtype).max)
    for extreme in (largest, -largest, 0.0, -0.0):
        good.reshape(-1)[: good.size // 2 + 1] = extreme
        np.testing.assert_array_equal(read_values({"x": tensor(good)}, dtype)["x"], jnp.asarray(good, dtype))
    for place in {0, good.size // 3, good.size - 1}:
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            bad = good.copy()
            bad.reshape(-1)[place] = value
            with pytest.raises(UsageError, match=f"not finite in {dtype}: x"):
                read_values({"good": tensor(good), "x": tensor(bad)}, dtype)


def test_what_another_dtype_can_not_hold_is_not_finite_in_it():
    wide = {"x": tensor(np.full((700, 700), 1e5))}
    assert read_values(wide, "float32")["x"].max() == 1e5
    with pytest.raises(UsageError, match="not finite in float16: x"):
        read_values(wide, "float16")


# A table that is large enough.
CONFIG = GPTConfig(
    vocab_size=4_100, n_positions=8, n_embd=256, n_layer=1, n_head=2, n_inner=8, bos_token_id=None, eos_token_id=None
)
BAD = "transformer.wte.weight"


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> dict[str, np.ndarray]:
    """A model's tensors by HF's names, the last value of whose table is NaN."""
    folder = tmp_path_factory.mktemp("good")
    save_pretrained(folder, CONFIG, tree_of(parameters(CONFIG), lambda p: jnp.full(p.shape, 0.1)))
    tensors = load_file(folder / "model.safetensors")
    tensors[BAD][-1, -1] = np.nan
    return tensors


@pytest.mark.parametrize("kind", ["whole", "shards", "pickle", "Flax", "nanoGPT"])
def test_every_format_passes_through_it(tmp_path, spoilt, flax_layout, kind):
    save_pretrained(tmp_path, CONFIG, tree_of(parameters(CONFIG), lambda p: jnp.zeros(p.shape)))
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    in_torch = {name: torch.from_numpy(values.copy()) for name, values in spoilt.items()}
    if kind == "whole":
        save_file(spoilt, weights)
    elif kind == "shards":
        save_file({BAD: spoilt[BAD]}, tmp_path / "one.safetensors")
        save_file({name: spoilt[name] for name in spoilt if name != BAD}, tmp_path / "two.safetensors")
        names = ", ".join(f'"{name}": "{"one" if name == BAD else "two"}.safetensors"' for name in spoilt)
        weights.with_suffix(".safetensors.index.json").write_text(f'{{"weight_map": {{{names}}}}}')
    elif kind == "pickle":
        torch.save(in_torch, tmp_path / "pytorch_model.bin")
    elif kind == "Flax":
        (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(flax_layout(spoilt)))
    else:
        (tmp_path / "config.json").unlink()
        turned = {n: t.T.contiguous() if t.ndim == 2 and ".h." in n else t for n, t in in_torch.items()}
        turned = {n: t for n, t in turned.items() if "c_fc" not in n}
        inner = {"c_fc.weight": (1024, 256), "c_fc.bias": (1024,), "c_proj.weight": (256, 1024)}
        turned |= {f"transformer.h.0.mlp.{name}": torch.zeros(shape) for name, shape in inner.items()}
        arguments = {"n_layer": 1, "n_head": 2, "n_embd": 256, "block_size": 8, "vocab_size": 4_100}
        torch.save({"model": turned, "model_args": {**arguments, "bias": True, "dropout": 0.0}}, tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match=r"not finite in float32: wte\.weight"):
        load_pretrained(tmp_path, allow_pickle=kind in ("pickle", "nanoGPT"))


def test_adapters_do_too(tmp_path):
    config, lora = replace(CONFIG, n_inner=4_100), LoRA(rank=256)
    save_adapters(tmp_path, config, lora, tree_of(adapter_parameters(config, lora), lambda p: jnp.zeros(p.shape)))
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"][-1, -1] = np.inf
    save_file(tensors, weights)
    with pytest.raises(UsageError, match=r"not finite in float32: h\.0\.mlp\.c_fc\.lora_B\.weight"):
        load_adapters(tmp_path, config)
