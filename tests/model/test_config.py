"""The config: HF's names and meanings, each key honoured, known to be irrelevant, or refused by name."""

import dataclasses
import json

import pytest
from transformers import GPT2Config

from jaxgpt.checks import shown
from jaxgpt.errors import UsageError
from jaxgpt.model.config import HF_ALIASES, HF_FIELDS, HF_IRRELEVANT, LIMITS, PRESETS, GPTConfig
from jaxgpt.notes import note

# Every field that HF knows, away from its default.
CHANGES = {
    "vocab_size": 100,
    "n_positions": 7,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 6,
    "n_inner": 50,
    "activation_function": "relu",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.25,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.5,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": (1, 2),
    "pad_token_id": 3,
}
BAD = [
    ("vocab_size", 0),
    ("vocab_size", True),
    ("n_positions", 2.0),
    ("n_embd", "768"),
    ("n_embd", None),
    ("n_layer", -1),
    ("n_head", 1000),
    ("n_inner", 0),
    ("activation_function", "gelu_old"),
    ("activation_function", ["gelu"]),
    ("resid_pdrop", 1.0),
    ("embd_pdrop", -0.1),
    ("attn_pdrop", float("nan")),
    ("attn_pdrop", "0.1"),
    ("layer_norm_epsilon", 0.0),
    ("layer_norm_epsilon", float("inf")),
    ("layer_norm_epsilon", 1e-320),
    ("initializer_range", 1e308),
    ("initializer_range", 10**400),
    ("initializer_range", -0.02),
    ("scale_attn_weights", "yes"),
    ("tie_word_embeddings", None),
    ("bos_token_id", -1),
    ("eos_token_id", 1.5),
    ("pad_token_id", "pad"),
    ("bias", 2),
    ("position_embedding", "rotary"),
    ("norm_position", "both"),
    *((name, limit + 1) for name, limit in LIMITS.items()),
]


def test_from_hf_inverts_to_hf():
    assert set(CHANGES) == set(HF_FIELDS)
    config = GPTConfig(**CHANGES)
    assert not [name for name in HF_FIELDS if getattr(config, name) == getattr(GPTConfig(), name)]
    for one in (config, *PRESETS.values()):
        # In an HF model's biases zeros stand for none.
        assert GPTConfig.from_hf(json.loads(json.dumps(one.to_hf()))) == dataclasses.replace(one, bias=True)


def test_names_and_defaults_are_those_of_hf():
    theirs = GPT2Config().to_dict()
    assert {name: theirs[name] for name in HF_FIELDS} == {name: getattr(GPTConfig(), name) for name in HF_FIELDS}
    assert GPTConfig.from_hf(theirs) == GPTConfig()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named(name: str, value: object):
    with pytest.raises(UsageError) as refused:
        GPTConfig(**{name: value})
    assert name in str(refused.value) and shown(value) in str(refused.value)


def test_labels_are_those_of_a_model_that_scores():
    config = GPTConfig(labels=("ham", "spam"))
    hf = json.loads(json.dumps(config.to_hf()))
    assert GPTConfig.from_hf(hf) == config
    assert GPTConfig.from_hf({**hf, "architectures": ["GPT2LMHeadModel"]}).labels is None
    del hf["id2label"]
    assert GPTConfig.from_hf(hf).labels == ("LABEL_0", "LABEL_1")
    assert GPTConfig.from_hf({**hf, "num_labels": 1}).labels == ("LABEL_0",)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "values",
    [
        {"num_labels": "two"},
        {"num_labels": 2**40},
        {"num_labels": 0},
        {"id2label": {"1": "ham", "2": "spam"}},
        {"id2label": None},
        {"id2label": {}},
        {"id2label": {"0": "ham", "1": "ham"}},
        {"id2label": {"0": ""}},
        {"id2label": {"0": ["ham"]}},
        {"id2label": {"0": {}}},
    ],
    ids=str,
)
def test_bad_labels_are_named(values: dict):
    with pytest.raises(UsageError, match="labels|id2label"):
        GPTConfig.from_hf({"architectures": ["GPT2ForSequenceClassification"], **values})


@pytest.mark.parametrize("architectures", [None, 3, "GPT2ForSequenceClassification", {}, [None]], ids=str)
def test_other_architectures_have_no_labels(architectures: object):
    assert GPTConfig.from_hf({"architectures": architectures}).labels is None


def test_heads_must_divide_the_width():
    with pytest.raises(UsageError, match="n_embd 768 is not a multiple of n_head 7"):
        GPTConfig(n_head=7)


@pytest.mark.usefixtures("unchecked_types")
def test_a_mistyped_activation_gets_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'gelu_new'"):
        GPTConfig.from_hf({"activation_function": "gelu_nwe"})


@pytest.mark.parametrize(
    "extra",
    [
        {"unsloth_fixed": True},
        {"attn_implementation": "flash_attention_2"},
        {"rope_scaling": {"type": "linear"}, "hidden_dropout_prob": 0.1},
        {"n_ctx": 512},
        {"n_ctx": None},
        {"generation_note": ["any", {"thing": "\x1b[2J\n"}]},
    ],
    ids=str,
)
def test_keys_that_no_gpt2_reads_are_noted_once_and_left_alone(capsys: pytest.CaptureFixture[str], extra: dict):
    note.cache_clear()
    theirs = GPT2Config().to_dict()
    for _ in range(2):
        assert GPTConfig.from_hf({**theirs, **extra}) == GPTConfig.from_hf(theirs)
    [line] = capsys.readouterr().err.splitlines()
    assert all(repr(key) in line for key in extra) and line.isprintable()


def test_what_every_published_config_has_is_not_noted(capsys: pytest.CaptureFixture[str]):
    note.cache_clear()
    GPTConfig.from_hf({**GPT2Config().to_dict(), "n_ctx": 1024, "n_positions": 1024, "_name_or_path": "gpt2"})
    assert capsys.readouterr().err == ""


def test_an_unread_key_gets_the_nearest_one_that_is_read(capsys: pytest.CaptureFixture[str]):
    note.cache_clear()
    GPTConfig.from_hf({"n_layers": 3})
    assert "'n_layers'; did you mean 'n_layer'" in capsys.readouterr().err


@pytest.mark.parametrize(("alias", "name"), HF_ALIASES.items())
def test_an_alias_is_its_field_and_may_not_contradict_it(alias: str, name: str):
    assert getattr(GPTConfig.from_hf({alias: 24}), name) == 24
    assert getattr(GPTConfig.from_hf({alias: 24, name: 24}), name) == 24
    with pytest.raises(UsageError, match=f"{name}.* is .*, but {name} is "):
        GPTConfig.from_hf({alias: 24, name: 48})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("model_type", "llama"),
        ("quantization_config", {"bits": 4}),
        ("pruned_heads", {"1": [0, 2]}),
    ],
)
def test_what_would_be_another_function_is_refused(key: str, value: object):
    with pytest.raises(UsageError, match=f"{key} is "):
        GPTConfig.from_hf({key: value})


def test_what_is_known_to_be_irrelevant_is_passed_over():
    assert GPTConfig.from_hf(dict.fromkeys(HF_IRRELEVANT - {"model_type"}, "anything")) == GPTConfig()


@pytest.mark.parametrize(("name", "value"), [("position_embedding", "sinusoidal"), ("norm_position", "post")])
def test_what_hf_does_not_have_is_not_exported(name: str, value: str):
    with pytest.raises(UsageError, match=f"{name} is '{value}'"):
        GPTConfig(**{name: value}).to_hf()


def test_an_unknown_preset_gets_the_nearest_one():
    with pytest.raises(UsageError, match="no preset 'gpt2-midium'.*did you mean 'gpt2-medium'"):
        GPTConfig.preset("gpt2-midium")


def test_an_end_of_text_beyond_the_vocabulary_is_none():
    assert GPTConfig().eos_token_ids == (50256,)
    assert GPTConfig(vocab_size=65).eos_token_ids == ()
    assert GPTConfig(eos_token_id=(5, 60000)).eos_token_ids == (5,)
    assert GPTConfig(eos_token_id=None).eos_token_ids == ()
