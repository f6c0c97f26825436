"""Adapters through PEFT's folders: its own logits on ours, and ours on its."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import save_pretrained
from jaxgpt.hf.peft import load_adapters, save_adapters
from jaxgpt.model.atlas import parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import adapter_parameters, is_adapter, merge
from jaxgpt.model.lora_config import LoRA
from jaxgpt.train.state import join, split

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIG = GPTConfig(
    vocab_size=61, n_positions=16, n_embd=12, n_layer=2, n_head=2, n_inner=20,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
SCORING = replace(CONFIG, labels=("ham", "spam", "other"))
LORA = LoRA(rank=3, alpha=5.0, dropout=0.1)
TOKENS = np.arange(1, 17, dtype=np.int32)[None]


def random(listed, seed=0):
    """Return parameters of which no two, biases included, are the same."""
    generator = np.random.default_rng(seed)
    return tree_of(listed, lambda p: jnp.asarray(generator.normal(size=p.shape, scale=0.3), jnp.float32))


BASE = random(parameters(CONFIG))
SCORING_BASE = random(parameters(SCORING))
HEAD = [parameter for parameter in parameters(SCORING) if parameter.path == ("score",)]


@pytest.fixture(scope="module")
def logits():
    return jax.jit(lambda params: GPT(CONFIG).apply({"params": params}, jnp.asarray(TOKENS))[0])


@pytest.fixture(scope="module")
def scores():
    def last(params):
        hidden, _ = GPT(SCORING).apply({"params": params}, jnp.asarray(TOKENS), method="hidden")
        return GPT(SCORING).apply({"params": params}, hidden, method="scores")[:, -1]

    return jax.jit(last)


def theirs(model):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.from_numpy(TOKENS).long()).logits.numpy()


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "targets", [("c_attn",), ("attn.c_proj",), ("mlp.c_proj",), ("c_fc",), ("c_proj",), LORA.targets], ids=" ".join
)
def test_peft_opens_what_is_saved(tmp_path, logits, targets):
    lora = replace(LORA, targets=targets)
    adapters = random(adapter_parameters(CONFIG, lora), 1)
    save_pretrained(tmp_path / "base", CONFIG, BASE)
    save_adapters(tmp_path, CONFIG, lora, adapters, base_model_name="base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    assert_close(logits(BASE), theirs(base))
    model = PeftModel.from_pretrained(base, tmp_path)
    assert model.peft_config["default"].base_model_name_or_path == "base"
    merged = logits(merge(join(BASE, adapters), lora))
    assert np.abs(merged - logits(BASE)).max() > 0.1
    assert_close(merged, theirs(model))


@pytest.mark.parametrize(
    "targets",
    [["c_attn"], ["attn.c_proj"], ["mlp.c_proj"], ["c_fc"], ["c_proj"], ["c_fc", "c_proj", "c_attn"], "all-linear"],
    ids=str,
)
def test_what_peft_saves_is_read(tmp_path, logits, targets):
    save_pretrained(tmp_path, CONFIG, BASE)
    settings = LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=targets, fan_in_fan_out=True)
    settings.init_lora_weights = False
    model = get_peft_model(GPT2LMHeadModel.from_pretrained(tmp_path), settings)
    model.save_pretrained(tmp_path / "adapters")
    lora, adapters = load_adapters(tmp_path / "adapters", CONFIG)
    assert replace(lora, targets=("c_attn",)) == LoRA(rank=3, alpha=5.0, dropout=0.1, targets=("c_attn",))
    assert_close(logits(merge(join(BASE, adapters), lora)), theirs(model))


def test_classifiers_go_to_peft_with_their_head(tmp_path, scores):
    saved = [*adapter_parameters(SCORING, LORA), *HEAD]
    trained = random(saved, 1)
    save_pretrained(tmp_path / "base", SCORING, SCORING_BASE)
    save_adapters(tmp_path, SCORING, LORA, trained)
    model = PeftModel.from_pretrained(GPT2ForSequenceClassification.from_pretrained(tmp_path / "base"), tmp_path)
    assert "score" in model.peft_config["default"].modules_to_save
    assert_close(scores(merge(join(SCORING_BASE, trained), LORA)), theirs(model))


def test_classifiers_of_peft_are_read(tmp_path, scores):
    save_pretrained(tmp_path, SCORING, SCORING_BASE)
    settings = LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True, task_type="SEQ_CLS")
    settings.init_lora_weights = False
    model = get_peft_model(GPT2ForSequenceClassification.from_pretrained(tmp_path), settings)
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path / "adapters")
    lora, trained = load_adapters(tmp_path / "adapters", SCORING)
    assert (trained["score"] != SCORING_BASE["score"]).all()
    assert_close(scores(merge(join(SCORING_BASE, trained), lora)), theirs(model))
    with pytest.raises(UsageError, match=r"adapter_config\.json: modules_to_save has score.* has no labels"):
        load_adapters(tmp_path / "adapters", CONFIG)


# Our own folders, without PyTorch.


@pytest.fixture
def folder(tmp_path):
    save_adapters(tmp_path / "adapters", CONFIG, LORA, random(adapter_parameters(CONFIG, LORA), 1))
    return tmp_path / "adapters"


@pytest.mark.parametrize("config", [CONFIG, SCORING], ids=["logits", "scores"])
def test_round_trip_is_exact(tmp_path, config):
    adapters = random([*adapter_parameters(config, LORA), *(HEAD if config.labels else [])], 1)
    save_adapters(tmp_path, config, LORA, adapters)
    lora, loaded = load_adapters(tmp_path, config)
    assert_equal(loaded, adapters)
    assert replace(lora, targets=LORA.targets) == LORA
    assert adapter_parameters(config, lora) == adapter_parameters(config, LORA)


def test_a_state_of_training_is_saved_by_its_adapters(tmp_path):
    adapters = random(adapter_parameters(CONFIG, LORA), 1)
    save_adapters(tmp_path, CONFIG, LORA, split(join(BASE, adapters), is_adapter)[0])
    assert_equal(load_adapters(tmp_path, CONFIG)[1], adapters)


def test_files_of_adapters_are_small(tmp_path):
    config = GPTConfig(vocab_size=5000, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    lora = LoRA(rank=2, targets=("c_attn",))
    save_pretrained(tmp_path, config, random(parameters(config)))
    save_adapters(tmp_path, config, lora, random(adapter_parameters(config, lora)))
    sizes = [(tmp_path / name).stat().st_size for name in ("adapter_model.safetensors", "model.safetensors")]
    assert sizes[0] < sizes[1] / 100
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"
    }  # fmt: skip


def test_adapters_that_do_not_fit_are_not_saved(tmp_path):
    adapters = random(adapter_parameters(CONFIG, LORA))
    del adapters["h_0"]["attn"]["c_attn"]["lora_b"]
    adapters["h_1"]["mlp"]["c_fc"]["lora_a"] = adapters["h_1"]["mlp"]["c_fc"]["lora_b"]
    adapters["ln_f"] = {"bias": BASE["ln_f"]["bias"]}
    message = r"h_1/mlp/c_fc/lora_a has shape.*missing: h_0/attn/c_attn/lora_b; not of this config: ln_f/bias"
    with pytest.raises(UsageError, match=message):
        save_adapters(tmp_path / "adapters", CONFIG, LORA, adapters)
    with pytest.raises(UsageError, match="missing: score"):
        save_adapters(tmp_path / "adapters", SCORING, LORA, random(adapter_parameters(SCORING, LORA)))
    with pytest.raises(UsageError, match="norm_position"):
        save_adapters(tmp_path / "adapters", replace(CONFIG, norm_position="post"), LORA, adapters)
    assert not (tmp_path / "adapters").exists()


def edit_settings(folder, **values):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | values))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type is 'IA3'; supported are 'LORA'"),
        ({"task_type": "TOKEN_CLS"}, r"task_type is 'TOKEN_CLS'; supported are None, 'CAUSAL_LM', 'SEQ_CLS'"),
        ({"bias": "all"}, r"bias is 'all'; supported are 'none'"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights is 'pissa'"),
        ({"use_dora": True}, r"use_dora is True, which is not supported"),
        ({"use_rslora": True}, r"use_rslora is True"),
        ({"lora_bias": True}, r"lora_bias is True"),
        ({"rank_pattern": {"c_attn": 4}}, r"rank_pattern is {'c_attn': 4}"),
        ({"alpha_pattern": {"c_attn": 4}}, r"alpha_pattern is"),
        ({"layers_to_transform": [1]}, r"layers_to_transform is \[1\]"),
        ({"exclude_modules": ["c_fc"]}, r"exclude_modules is"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is"),
        ({"of_the_future": 1}, r"of_the_future is 1"),
        ({"modules_to_save": ["wte"]}, r"modules_to_save is \['wte'\]; only 'score'"),
        ({"modules_to_save": "score"}, r"modules_to_save is 'score'"),
        ({"modules_to_save": 3}, r"modules_to_save is 3"),
        ({"target_modules": ".*c_attn"}, r"target_modules is '\.\*c_attn'; it must be a list"),
        ({"target_modules": None}, r"target_modules is None"),
        ({"target_modules": ["c_attn", "wte"]}, r"target_modules has 'wte', which is no matrix of a layer; valid are"),
        ({"target_modules": ["c_attn", [1]]}, r"target_modules has \[1\]"),
        ({"target_modules": ["h.1.mlp.c_fc"]}, r"mlp\.c_fc of 1 layers only; of all 2 or of none"),
        ({"r": 0}, r"rank is 0"),
        ({"r": "4"}, r"rank is '4'"),
        ({"lora_alpha": [8]}, r"alpha is \[8\]"),
        ({"lora_dropout": 1.5}, r"dropout is 1\.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_are_honoured_or_refused_by_name(folder, values, message):
    edit_settings(folder, **values)
    with pytest.raises(UsageError, match=r"adapter_config\.json: .*" + message):
        load_adapters(folder, CONFIG)


def test_settings_that_are_off_do_nothing(folder):
    _, expected = load_adapters(folder, CONFIG)
    edit_settings(folder, use_dora=False, rank_pattern={}, of_the_future=None, inference_mode=False, revision="main")
    assert_equal(load_adapters(folder, CONFIG)[1], expected)


NAME = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


def drop(tensors):
    del tensors[NAME]


def add(tensors):
    tensors["base_model.model.transformer.wte.lora_embedding_A"] = np.zeros((3, 61), np.float32)


def turn(tensors):
    tensors[NAME] = np.ascontiguousarray(tensors[NAME].T)


def to_int(tensors):
    tensors[NAME] = tensors[NAME].astype(np.int32)


def repeat(tensors):
    tensors[NAME.replace("transformer.", "")] = tensors[NAME]


def spoil(tensors):
    tensors[NAME][0, 0] = np.nan


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop, r"missing: h\.0\.attn\.c_attn\.lora_A\.weight"),
        (add, r"not of this model: wte\.lora_embedding_A"),
        (turn, r"h\.0\.attn\.c_attn\.lora_A\.weight has shape \(12, 3\); the config makes it \(3, 12\)"),
        (to_int, r"h\.0\.attn\.c_attn\.lora_A\.weight is I32; valid are"),
        (repeat, r"h\.0\.attn\.c_attn\.lora_A\.weight is there twice"),
        (spoil, r"not finite in float32: h\.0\.attn\.c_attn\.lora_A\.weight"),
    ],
)
def test_tensors_that_do_not_fit(folder, edit, message):
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: .*" + message):
        load_adapters(folder, CONFIG)


@pytest.mark.parametrize("config", [replace(CONFIG, n_layer=3), replace(CONFIG, n_layer=1), replace(CONFIG, n_embd=14)])
def test_adapters_of_another_model_are_refused(folder, config):
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: .*(missing|not of this model|has shape)"):
        load_adapters(folder, config)


def test_missing_and_damaged_files_are_named(folder):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_adapters(folder, CONFIG)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: no such file"):
        load_adapters(folder, CONFIG)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"adapter_config\.json: holds a list"):
        load_adapters(folder, CONFIG)
