"""A run's flags: bad values are refused by name before anything is computed; the rest shapes the model."""

import dataclasses
import math

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.model.config import PRESETS, GPTConfig
from jaxgpt.stages.ppo import PPOStageConfig
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.train.config import OptimizerConfig

BAD = [
    ("max_iters", 0),
    ("learning_rate", 0.0),
    ("learning_rate", math.inf),
    ("learning_rate", math.nan),
    ("min_lr", -1e-5),
    ("min_lr", 1.0),
    ("min_lr", math.nan),
    ("warmup_iters", -1),
    ("warmup_iters", 2001),
    ("lr_decay_iters", 0),
    ("weight_decay", -0.1),
    ("weight_decay", math.nan),
    ("beta1", 1.0),
    ("beta2", 1.5),
    ("beta2", math.nan),
    ("grad_clip", 0.0),
    ("grad_clip", math.nan),
    ("batch_size", 0),
    ("gradient_accumulation_steps", 0),
    ("max_skips", 0),
    ("fsdp", 0),
    ("tensor", -1),
    ("eval_interval", 0),
    ("eval_iters", 0),
    ("log_interval", 0),
    ("save_interval", 0),
    ("save_minutes", 0.0),
    ("keep", 0),
    ("bpe_vocab_size", 256),
    ("block_size", 0),
    ("seed", -1),
    ("seed", 2**32),
    ("sample_tokens", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(UsageError) as refused:
        PretrainConfig(**{name: value})
    assert name in str(refused.value) and str(value) in str(refused.value)


def test_limits_themselves_are_fine():
    OptimizerConfig(max_iters=1, warmup_iters=1, min_lr=0.0, weight_decay=0.0, beta1=0.0, grad_clip=None)
    OptimizerConfig(learning_rate=1e-3, min_lr=1e-3, lr_decay_iters=100, warmup_iters=100)
    PretrainConfig(seed=2**32 - 1, keep=1, sample_tokens=0, save_minutes=None, tokenizer="bpe", bpe_vocab_size=257)


@pytest.mark.parametrize("record", [OptimizerConfig, PretrainConfig, PPOStageConfig])
@pytest.mark.parametrize(("max_iters", "warmup"), [(1, 0), (20, 1), (50, 2), (400, 20), (2000, 100), (600_000, 30_000)])
def test_warmup_is_a_twentieth_of_the_run_unless_said_otherwise(record, max_iters, warmup):
    more = {"dataset": "x", "reward_function": "f.py:f"} if record is PPOStageConfig else {}
    assert record(max_iters=max_iters, **more).warmup == warmup
    assert record(max_iters=max_iters, warmup_iters=1, **more).warmup == 1
    assert record(max_iters=max_iters, lr_decay_iters=20, **more).warmup == min(warmup, 1)
    longer = record(max_iters=max_iters, **more).times(8)
    assert (longer.max_iters, longer.warmup, longer.decay_iters) == (8 * max_iters, 8 * warmup, 8 * max_iters)


def test_rows_of_an_update_are_limited_together():
    with pytest.raises(UsageError, match="batch_size 2000 x gradient_accumulation_steps 2000 are 4000000 rows"):
        PretrainConfig(batch_size=2000, gradient_accumulation_steps=2000)


def test_decay_ends_with_the_run_unless_said_otherwise():
    assert OptimizerConfig(max_iters=700).decay_iters == 700
    assert OptimizerConfig(max_iters=700, lr_decay_iters=900).decay_iters == 900


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_what_is_not_said_of_the_model_stays(preset):
    assert PretrainConfig().model(preset) == preset


def test_what_is_said_of_the_model_counts_even_where_it_is_zero_or_false():
    said = {"n_layer": 3, "n_head": 2, "n_embd": 10, "bias": False, "tie_word_embeddings": False, "n_inner": 7}
    expected = dataclasses.replace(GPTConfig(**said), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    assert PretrainConfig(**said, dropout=0.0).model(GPTConfig()) == expected


def test_a_model_that_can_not_be_is_refused():
    with pytest.raises(UsageError, match="n_embd 768 is not a multiple of n_head 5"):
        PretrainConfig(n_head=5).model(GPTConfig())
