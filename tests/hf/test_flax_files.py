"""Legacy Flax weights: a model of PyTorch's, written in their layout, is the same function."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from transformers import GPT2Config, GPT2LMHeadModel

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained
from jaxgpt.model.gpt import GPT
from jaxgpt.verification.outputs import verify


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def theirs(request, tmp_path):
    """A model of PyTorch's in which no two tensors are the same, and its settings in a folder without weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, tie_word_embeddings=request.param, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config.save_pretrained(tmp_path)
    return model


def tensors(model):
    """Return what a file has; a tied head is not saved."""
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def logits(config, params):
    return np.asarray(GPT(config).apply({"params": params}, jnp.arange(32).reshape(2, 16))[0])


def assert_same_function(folder, model):
    config, params = load_pretrained(folder)
    assert config.tie_word_embeddings == model.config.tie_word_embeddings
    with torch.inference_mode():
        expected = model(torch.arange(32).reshape(2, 16)).logits.numpy()
    np.testing.assert_allclose(logits(config, params), expected, atol=1e-4 * expected.std())
    return config, params


def test_same_function(tmp_path, theirs, flax_layout):
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(flax_layout(tensors(theirs))))
    config, params = assert_same_function(tmp_path, theirs)
    assert {check.result for check in verify(tmp_path, config, params)} == {"pass", "not applicable"}


def test_shards(tmp_path, theirs, flax_layout):
    state = tensors(theirs)
    names = sorted(state)
    for number, part in enumerate((names[:7], names[7:])):
        file = tmp_path / f"flax_model-{number}.msgpack"
        file.write_bytes(to_bytes(flax_layout({name: state[name] for name in part})))
    places = {name.replace(".", "/"): f"flax_model-{int(name in names[7:])}.msgpack" for name in names}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same_function(tmp_path, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_read_as_they_are(tmp_path, theirs, flax_layout, dtype):
    state = {name: values.astype(jnp.dtype(dtype)) for name, values in tensors(theirs).items()}
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(flax_layout(state)))
    _, params = load_pretrained(tmp_path)
    kernel = state["transformer.h.1.mlp.c_fc.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["h_1"]["mlp"]["c_fc"]["kernel"], kernel)


def test_they_are_preferred_to_pickles_that_may_not_be_read(tmp_path, theirs, flax_layout):
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(flax_layout(tensors(theirs))))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert_same_function(tmp_path, theirs)


def nested(depth):
    return {"a": nested(depth - 1)} if depth else np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is cut"),
        (b"\x80", "missing: h.0.attn.c_attn.bias"),
        (b"\xc1", "it is neither an array nor a dictionary of arrays"),
        (b"\x81\xdb\xff\xff\xff\xff", "a name of 4294967295 bytes"),
        (b"\xdf\xff\xff\xff\xff", "it is cut"),
        (b"\x81\xa1a" * 2000, "a/a/a/a/a/a/a/a is neither"),
        (b"\x81\xa1\xff\xc0", "'utf-8' codec can't decode"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93", "it is cut"),
        (b"\x81\xa1a\xc7\x01\x02\x00", "a is neither an array"),
        (to_bytes({"a": np.zeros(3, np.float32)})[:-1], "it is shorter or longer than what it holds"),
        (to_bytes({"a": np.zeros(3, np.float32)}) + b"\0", "it is shorter or longer than what it holds"),
        (to_bytes({"a": np.zeros((1,) * 5, np.float32)}), "a is no array of at most 4 axes"),
        (to_bytes({"a": np.zeros(3, np.float32)}).replace(b"\x91\x03", b"\x91\x04"), r"12 bytes for the shape \(4,\)"),
        (to_bytes({"wte": {"embedding": np.zeros((61, 12), np.int32)}}), "wte.weight is int32; valid are F16"),
        (to_bytes({"a": 3}), "a is neither"),
        (to_bytes(nested(9)), "a/a/a/a/a/a/a/a is neither"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else "",
)
def test_other_files_are_refused(tmp_path, theirs, content, message):
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(UsageError, match=message) as refused:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(refused.value)
