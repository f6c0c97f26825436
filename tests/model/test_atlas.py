"""The atlas: exactly the model's parameters, with their shapes, counts and weight decay."""

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.model.atlas import axes, count, map_parameters, parameters
from jaxgpt.model.config import PRESETS, GPTConfig
from jaxgpt.model.gpt import GPT

SIZES = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
TINY = {"vocab_size": 11, "n_positions": 7, "n_embd": 12, "n_layer": 2, "n_head": 3}
OPTIONS = [
    {"bias": False},
    {"n_inner": 20},
    {"norm_position": "post"},
    {"norm_position": "post", "bias": False},
    {"position_embedding": "sinusoidal"},
    {"tie_word_embeddings": False},
]
CONFIGS = [*PRESETS.values(), *(GPTConfig(**TINY, **options) for options in OPTIONS)]
NAMES = [*PRESETS, *(" ".join(f"{name}={value}" for name, value in options.items()) for options in OPTIONS)]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_the_atlas_is_the_model(config: GPTConfig):
    made = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, made) == map_parameters(config, lambda p: p.shape)
    assert count(config)["total"] == sum(leaf.size for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_matrices_decay_and_nothing_else(config: GPTConfig):
    assert all(p.row.decay == (len(p.shape) == 2) for p in parameters(config))


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_no_name_stands_twice(config: GPTConfig):
    listed = list(parameters(config))
    assert len({p.path for p in listed}) == len({p.hf_name for p in listed}) == len(listed)


@pytest.mark.parametrize(("name", "total"), SIZES.items())
def test_sizes_are_those_of_openai(name: str, total: int):
    assert count(GPTConfig.preset(name))["total"] == total


def test_parts_of_gpt2():
    parts = count(GPTConfig())
    shares = {part: f"{number / parts['total']:.1%}" for part, number in parts.items()}
    assert shares == {
        "embeddings": "31.6%",
        "attention": "22.8%",
        "feed-forward": "45.5%",
        "norms": "0.0%",
        "total": "100.0%",
    }
    assert sum(parts.values()) == 2 * parts["total"]


def test_a_pattern_has_one_axis_per_word_or_bracket():
    assert axes("D") == ("D",)
    assert axes("D (3 H K)") == ("D", "(3 H K)")
    assert axes("(H K) D") == ("(H K)", "D")
