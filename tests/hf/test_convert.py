import json
import pickle
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.model.atlas import map_parameters, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.notes import note
from jaxgpt.tokenizers import load_tokenizer

CONFIG = GPTConfig(
    vocab_size=61, n_positions=16, n_embd=12, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=(3, 5)
)
UNTIED = replace(CONFIG, tie_word_embeddings=False)
NO_BIAS = replace(CONFIG, bias=False)
SCORING = replace(CONFIG, labels=("ham", "spam", "other"), pad_token_id=0)


def init(config, dtype=jnp.float32):
    """Return random parameters in which no two leaves, biases included, are the same."""
    draw = np.random.default_rng(0).standard_normal
    return map_parameters(config, lambda parameter: jnp.asarray(draw(parameter.shape).astype(dtype)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda leaf: leaf.dtype, a) == jax.tree.map(lambda leaf: leaf.dtype, b)


def logits(config, params):
    tokens = jnp.arange(16)[None] % config.vocab_size
    return GPT(config).apply({"params": params}, tokens)[0]


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "model", CONFIG, init(CONFIG))
    return tmp_path / "model"


def edit_config(folder, **values):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | values))


def edit_tensors(folder, edit):
    """Rewrite the weights after `edit` has changed the dict of them."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [CONFIG, UNTIED, SCORING, replace(SCORING, tie_word_embeddings=False)])
def test_round_trip_is_exact(tmp_path, config, dtype):
    params = init(config, dtype)
    save_pretrained(tmp_path, config, params)
    loaded_config, loaded = load_pretrained(tmp_path, dtype=dtype)
    assert loaded_config == config
    assert_equal(loaded, params)


@pytest.mark.parametrize(("named", "ids"), [([3, 7], (3, 7)), (9, (9,)), (None, ()), ([], ())])
def test_the_ids_that_end_a_generation_are_those_of_generation_config(tmp_path, named, ids):
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named, "do_sample": True}))
    config, params = load_pretrained(tmp_path)
    assert config.eos_token_ids == ids
    assert GPT2LMHeadModel.from_pretrained(tmp_path).generation_config.eos_token_id == named
    save_pretrained(tmp_path / "again", config, params)
    assert load_pretrained(tmp_path / "again")[0] == config
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "again").generation_config.eos_token_id == named
    for bad in ("-1", "[3, -1]"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {bad}}}')
        with pytest.raises(UsageError, match="generation_config.json: eos_token_id"):
            load_pretrained(tmp_path)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": 5}, "source is 5; it must be a model's name on the hub, or the path of a folder or of ckpt.pt"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16"),
        ({"allow_pickle": "false"}, "allow_pickle is 'false'; it must be True or False"),
        ({"revision": 1}, "revision is 1; it must be a text"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        load_pretrained(**{"source": tmp_path, **options})


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_tokenizer_or_no_models_parameters_is_not_saved(tmp_path):
    params = init(CONFIG)
    for wrong, message in (({"tokenizer": "gpt2"}, "tokenizer is 'gpt2'"), ({"params": None}, "params is None")):
        with pytest.raises(UsageError, match=message):
            save_pretrained(**{"directory": tmp_path, "config": CONFIG, "params": params, **wrong})
    assert not list(tmp_path.iterdir())


def test_narrow_weights_are_converted(tmp_path):
    params = init(CONFIG, jnp.bfloat16)
    save_pretrained(tmp_path, CONFIG, params)
    assert_equal(load_pretrained(tmp_path)[1], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


@pytest.mark.parametrize("config", [CONFIG, UNTIED, NO_BIAS], ids=["tied", "untied", "no bias"])
def test_transformers_opens_what_is_saved(tmp_path, config):
    params = init(config)
    save_pretrained(tmp_path, config, params)
    model, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.inference_mode():
        theirs = model.eval()(torch.arange(16)[None]).logits.numpy()
    np.testing.assert_allclose(logits(config, params), theirs, atol=1e-4 * theirs.std())


def scores(config, params, tokens):
    """Return each row's scores at its last token that isn't padding."""
    hidden, _ = GPT(config).apply({"params": params}, jnp.asarray(tokens), method="hidden")
    last = (np.arange(tokens.shape[1]) * (tokens != config.pad_token_id)).argmax(-1)
    return GPT(config).apply({"params": params}, hidden, method="scores")[np.arange(len(tokens)), last]


def assert_same_scores(config, params, model):
    tokens = np.arange(1, 33, dtype=np.int32).reshape(2, 16)
    tokens[1, 9:] = config.pad_token_id
    with torch.inference_mode():
        theirs = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(scores(config, params, tokens), theirs, atol=1e-4 * theirs.std())


@pytest.mark.parametrize("config", [SCORING, replace(SCORING, labels=("reward",), bias=False)], ids=["3", "1"])
def test_transformers_opens_a_model_that_scores(tmp_path, config):
    params = init(config)
    save_pretrained(tmp_path, config, params)
    model, info = GPT2ForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert tuple(model.config.id2label.values()) == config.labels
    assert_same_scores(config, params, model)


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1"), ("ham", "spam", "other")])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_that_scores_is_read(tmp_path, labels, tied):
    settings = {key: value for key, value in CONFIG.to_hf().items() if key in ("vocab_size", "n_positions", "n_embd")}
    hf = GPT2Config(
        **settings, n_layer=2, n_head=2, pad_token_id=0, tie_word_embeddings=tied, id2label=dict(enumerate(labels))
    )
    model = GPT2ForSequenceClassification(hf)
    model.save_pretrained(tmp_path)
    config, params = load_pretrained(tmp_path)
    assert config.labels == labels and config.tie_word_embeddings
    assert_same_scores(config, params, model)


def test_without_biases_comes_back_with_zeros(tmp_path):
    params = init(NO_BIAS)
    save_pretrained(tmp_path, NO_BIAS, params)
    config, loaded = load_pretrained(tmp_path)
    assert config == CONFIG
    assert not loaded["ln_f"]["bias"].any()
    np.testing.assert_array_equal(logits(config, loaded), logits(NO_BIAS, params))


def test_tokenizer_is_saved_too(tmp_path):
    save_pretrained(tmp_path, CONFIG, init(CONFIG), tokenizer=load_tokenizer("gpt2"))
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("name", ["position_embedding", "norm_position"])
def test_what_hf_lacks_is_not_saved(tmp_path, name):
    config = replace(CONFIG, **{name: {"position_embedding": "sinusoidal", "norm_position": "post"}[name]})
    with pytest.raises(UsageError, match=name):
        save_pretrained(tmp_path / "model", config, init(config))
    assert not (tmp_path / "model").exists()


def test_params_that_do_not_fit_are_not_saved(tmp_path):
    params = init(CONFIG)
    del params["ln_f"]["bias"]
    params["score"] = params["wpe"]
    params["wpe"] = params["wte"]
    with pytest.raises(UsageError, match=r"missing: ln_f/bias.*not of this config: score.*wpe/embedding has shape"):
        save_pretrained(tmp_path, CONFIG, params)


# What stands in published folders.


def test_names_buffers_and_copied_head_of_other_versions(folder):
    _, expected = load_pretrained(folder)

    def as_published(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name.removeprefix('transformer.')}"] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["_orig_mod.wte.weight"]
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), bool))
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float32)

    edit_tensors(folder, as_published)
    assert_equal(load_pretrained(folder)[1], expected)


BESIDE = ("v_head.summary.bias", "multiple_choice_head.summary.weight", "v_head.0.weight", "classifier.weight")


@pytest.mark.parametrize("name", BESIDE)
def test_heads_beside_the_model_are_noted_and_left_alone(folder, capsys, name):
    note.cache_clear()
    _, expected = load_pretrained(folder)
    edit_tensors(folder, lambda tensors: tensors.update({name: np.zeros((1, 12), np.int64)}))
    assert_equal(load_pretrained(folder)[1], expected)
    load_pretrained(folder)
    assert [name in line for line in capsys.readouterr().err.splitlines()] == [True]


def shard(folder):
    """Split the weights into two files with an index, by hand."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    write_index(folder, {name: file for file, part in parts.items() for name in part})


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(folder):
    _, expected = load_pretrained(folder)
    shard(folder)
    assert_equal(load_pretrained(folder)[1], expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match="model-00002-of-00002.safetensors is missing"):
        load_pretrained(folder)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_only_when_allowed(folder, legacy):
    _, expected = load_pretrained(folder)
    tensors = {name: torch.from_numpy(value).clone() for name, value in load_file(folder / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="allow_pickle"):
        load_pretrained(folder)
    assert_equal(load_pretrained(folder, allow_pickle=True)[1], expected)


def test_pickled_bfloat16(folder):
    _, expected = load_pretrained(folder, dtype="bfloat16")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    torch.save({name: value.bfloat16() for name, value in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_equal(load_pretrained(folder, allow_pickle=True, dtype="bfloat16")[1], expected)


NAME = "transformer.h.0.attn.c_attn.weight"


def pickled(folder, change):
    """Write the weights as a pickle, one of them changed."""
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, NAME: change(tensors[NAME])}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.Parameter,
        lambda tensor: tensor.requires_grad_(),
        lambda tensor: torch.complex(tensor, -tensor).conj().imag,
        lambda tensor: tensor.t().contiguous().t(),
        lambda tensor: torch.nn.Parameter(tensor.bfloat16()),
    ],
    ids=["parameter", "requires_grad", "negative bit", "strides", "bfloat16 parameter"],
)
def test_pickled_tensors_of_every_kind_are_read_as_their_values(folder, change):
    _, expected = load_pretrained(folder)
    pickled(folder, change)
    _, found = load_pretrained(folder, allow_pickle=True)
    leaves = expected["h_0"]["attn"]["c_attn"]
    changed = change(torch.tensor(leaves["kernel"])).detach().resolve_neg()
    leaves["kernel"] = jnp.asarray(changed.float().numpy())
    assert_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to_sparse_csr(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.nested.nested_tensor([tensor, tensor[:2]]),
    ],
    ids=["sparse", "rows", "meta", "nested"],
)
def test_pickled_tensors_without_plain_values_are_refused(folder, change):
    pickled(folder, change)
    with pytest.raises(UsageError, match=f"pytorch_model.bin: '{NAME}' is sparse, or else no plain tensor") as refused:
        load_pretrained(folder, allow_pickle=True)
    assert "\n" not in str(refused.value)


# Bad input: one line that names the file and what is wrong with it.


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt"])
def test_payload_of_a_pickle_does_not_run(folder, tmp_path, write, name):
    (folder / "model.safetensors").unlink()
    if name == "ckpt.pt":
        (folder / "config.json").unlink()
    marker = tmp_path / "ran"
    write({"transformer.wte.weight": Payload(marker)}, folder / name)
    with pytest.raises(UsageError, match=f"{name}.*weights_only"):
        load_pretrained(folder, allow_pickle=True)
    assert not marker.exists()


def test_small_pickle_of_a_large_model(folder):
    config = GPTConfig(vocab_size=2**23, n_positions=1, n_embd=2**16, n_layer=1, n_head=1, n_inner=1)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    (folder / "model.safetensors").unlink()
    tensors = {parameter.hf_name: torch.zeros(1).expand(parameter.shape) for parameter in parameters(config)}
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="the weights would take 2"):
        load_pretrained(folder, allow_pickle=True)


def drop(tensors):
    del tensors["transformer.h.1.attn.c_attn.bias"]


def add(tensors):
    tensors["score.weight"] = np.zeros((2, 12), np.float32)


def reshape(tensors):
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:8]


def to_int(tensors):
    tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype(np.int32)


def repeat(tensors):
    tensors["wte.weight"] = tensors["transformer.wte.weight"]


def other_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


@pytest.mark.parametrize(
    "edit, message",
    [
        (drop, r"missing: h\.1\.attn\.c_attn\.bias"),
        (add, r"not of this model: score\.weight"),
        (reshape, r"wpe\.weight has shape \(8, 12\); the config makes it \(16, 12\)"),
        (to_int, r"ln_f\.bias is I32"),
        (repeat, r"wte\.weight is there twice"),
        (other_head, r"lm_head\.weight differs from wte\.weight"),
    ],
)
def test_tensors_that_do_not_fit(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(UsageError, match=message):
        load_pretrained(folder)


def test_own_head_is_required_when_untied(folder):
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(UsageError, match=r"missing: lm_head\.weight"):
        load_pretrained(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, None, ["a"]])
def test_index_stays_in_its_folder(folder, file):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_index(folder, {"transformer.wte.weight": file})
    with pytest.raises(UsageError, match="model.safetensors.index.json"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"vocab_size": "many"}',
        '{"vocab_size": 1000000000}',
        '{"n_layer": 1e400}',
        '{"n_embd": -1}',
        '{"n_head": true}',
        '{"layer_norm_epsilon": NaN}',
        '{"eos_token_id": [[1]]}',
        '{"model_type": ["gpt2"]}',
        '{"model_type": "llama"}',
        '{"sliding_window": 4}',
        '{"is_causal": false}',
        '{"add_cross_attention": true}',
        '{"n_embd": ' + "9" * 5000 + "}",
        "\udcff",
    ],
)
def test_bad_config(folder, monkeypatch, text):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the test run's own check of types comes first
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"config\.json"):
        load_pretrained(folder)


ABSURD = ["[" * 900 + "]" * 900, '"' + "x" * 10**6 + '"', "[]", "[[]]", "{}", "1e400", "9" * 4000, "NaN", '"a\\nb"']
ABSURD += ['"\\ud800"', '"\\u001b[2J"', '{"' + "x" * 10**6 + '": 0}', "[" + "0, " * 10**5 + "0]"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("place", ['{"vocab_size": %s}', '{"x": {"0": %s}}', '{"weight_map": {"a": %s}}'])
def test_absurd_values_are_one_short_line(folder, monkeypatch, name, place):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (folder / "model.safetensors").unlink()
    for value in ABSURD:
        (folder / name).write_text(place % value)
        with pytest.raises(UsageError) as refused:
            load_pretrained(folder)
        message = str(refused.value)
        assert str(folder) in message and len(message) < 3000 and message.isprintable(), value[:20]


@pytest.mark.parametrize("file", ["x" * 300, "x\0y", "\ud800", "model.safetensors.index.json/x", "."])
def test_what_can_be_no_files_name_is_no_shard(folder, file):
    (folder / "model.safetensors").unlink()
    write_index(folder, {"transformer.wte.weight": file})
    with pytest.raises(UsageError, match="model.safetensors.index.json"):
        load_pretrained(folder)


def test_pruned_heads_are_refused_by_name(folder):
    edit_config(folder, pruned_heads={})
    load_pretrained(folder)
    edit_config(folder, pruned_heads={"0": [1]})
    with pytest.raises(UsageError, match=r"config\.json: pruned_heads is {'0': \[1\]}; only {} is supported"):
        load_pretrained(folder)


def test_huge_json_is_not_read(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match="too large"):
        load_pretrained(folder)


def test_large_config_over_small_files_allocates_nothing(folder):
    edit_config(folder, vocab_size=2**24, n_embd=2**17, n_layer=2**12, n_head=1)
    with pytest.raises(UsageError, match=r"and \d+ more"):
        load_pretrained(folder)


def test_remote_code_is_ignored(folder):
    (folder / "code.py").write_text("raise SystemExit")
    edit_config(folder, auto_map={"AutoModel": "code.Model"})
    load_pretrained(folder)


def test_a_runs_folder_is_none_of_pretrained_weights(folder):
    (folder / "checkpoints").mkdir()
    with pytest.raises(UsageError, match=r"is a run's folder, which jaxgpt.runs.weights.load_params reads; convert_w"):
        load_pretrained(folder)


def test_adapters_alone_are_no_model_and_it_is_said_what_merges_them(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"{tmp_path} holds PEFT's adapters and no model: .* --base MODEL merges them"):
        load_pretrained(tmp_path)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(UsageError, match="tf_model.h5 can't be read: transformers before version 5 makes safetensors"):
        load_pretrained(folder)
    (folder / "tf_model.h5").unlink()
    with pytest.raises(UsageError, match="no model.safetensors, flax_model.msgpack or pytorch_model.bin$"):
        load_pretrained(folder)


@pytest.mark.parametrize("head", [b"\xff" * 8, (2**40).to_bytes(8, "little"), b"", b"\x02" + b"\x00" * 7 + b"{}"])
def test_bad_safetensors_header(folder, head):
    (folder / "model.safetensors").write_bytes(head)
    with pytest.raises(UsageError, match="model"):
        load_pretrained(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_load_equal_or_not_at_all(folder, data):
    """Bytes of the header change, or the file's end; the values themselves have no checksum."""
    good = folder.parent / "good"
    if not good.exists():
        good.write_bytes((folder / "model.safetensors").read_bytes())
    content = bytearray(good.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        for _ in range(data.draw(st.integers(1, 3), "changes")):
            content[data.draw(st.integers(0, header - 1), "place")] = data.draw(st.integers(0, 255), "byte")
    (folder / "model.safetensors").write_bytes(content)
    try:
        _, params = load_pretrained(folder)
    except UsageError as error:
        assert str(folder) in str(error)
    else:
        assert_equal(params, init(CONFIG))


@pytest.mark.parametrize("dtype", ["int32", jnp.float64, "complex64", "bf16"])
def test_bad_dtype(folder, dtype):
    with pytest.raises(UsageError, match="dtype is"):
        load_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117", "2.0"])
def test_an_old_torch_reads_no_pickle(folder, tmp_path, monkeypatch, version):
    """Its weights_only can be got around, so nothing is opened."""
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", None)
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=rf"takes torch 2\.10; installed is {re.escape(version)}"):
        load_pretrained(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


# The hub.


def test_local_folder_needs_no_network(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    load_pretrained(folder)
    load_pretrained(str(folder))
    with pytest.raises(UsageError, match="revision"):
        load_pretrained(folder, revision="main")


def test_hub_name(folder, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_pretrained("owner/model", revision="v1", allow_pickle=True)[0] == CONFIG
    assert [call[:2] for call in asked] == [("owner/model", "v1")]
    assert not any(".bin" in pattern or ".msgpack" in pattern for pattern in asked[0][2])
    assert {"special_tokens_map.json", "chat_template.jinja"} <= set(asked[0][2])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no model.safetensors"):
        load_pretrained("owner/model", allow_pickle=True)
    assert any(".bin" in pattern for pattern in asked[-1][2])
    with pytest.raises(UsageError, match="no model.safetensors"):
        load_pretrained("owner/model")
    assert asked[-1][2] == ["flax_model*.msgpack*"]


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"hf download gpt2 --local-dir .*config\.json, model\.safetensors"):
        load_pretrained("gpt2")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "", "a" * 5000 + "/", "a\0b", "~x"])
def test_neither_folder_nor_name(name):
    with pytest.raises(UsageError, match="no such file or folder"):
        load_pretrained(name)


# Memory.

MEASURE = """
import json, resource, sys
from jaxgpt import load_pretrained
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_pretrained(sys.argv[1])
before = peak()
import jax
config, params = load_pretrained(sys.argv[2])
jax.block_until_ready(params)
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_one_copy(folder, dtype):
    """XL's proportions, at a tenth of its size: no tensor is more than a tenth of the whole."""
    config = GPTConfig(vocab_size=5000, n_positions=512, n_embd=1024, n_layer=12, n_head=16)
    large = folder.parent / "large"
    save_pretrained(large, config, map_parameters(config, lambda p: jnp.ones(p.shape, dtype)))
    command = [sys.executable, "-c", MEASURE, str(folder), str(large)]
    assert float(subprocess.check_output(command, text=True)) < 1.3
