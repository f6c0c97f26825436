"""Adapters: nothing at first, then W + alpha/rank A B, and all that training moves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxgpt.data.batches import Batch
from jaxgpt.errors import UsageError
from jaxgpt.mesh import make_mesh, parameter_shardings
from jaxgpt.model.atlas import count, map_parameters, tree_of
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.lora import adapter_parameters, init_adapters, is_adapter, merge, without_adapters
from jaxgpt.model.lora_config import TARGETS, LoRA
from jaxgpt.objectives.base import Sums, with_adapters
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.train.state import TrainState, join, split
from jaxgpt.train.step import make_step

CONFIG = GPTConfig(
    vocab_size=17, n_positions=8, n_embd=12, n_layer=2, n_head=2, n_inner=20,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
LORA = LoRA(rank=3, alpha=5.0)
MODULES = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def random(tree, seed):
    """Return a tree of the same shapes in which nothing is zero."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape, scale=0.2), jnp.float32), tree)


@pytest.fixture(scope="module")
def base():
    return random(map_parameters(CONFIG, lambda p: np.empty(p.shape)), 0)


@pytest.fixture(scope="module")
def whole(base):
    return join(base, random(tree_of(adapter_parameters(CONFIG, LORA), lambda p: np.empty(p.shape)), 1))


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(17, size=(2, 4, 8), dtype=np.int32)
    return Batch(*map(jnp.asarray, tokens), jnp.ones((4, 8)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_new_adapters_change_nothing(base):
    new = init_adapters(CONFIG, LORA, jax.random.key(0))
    assert_equal(merge(join(base, new), LORA), base)
    assert_equal(merge(base, LORA), base)


def test_new_adapters_are_those_of_peft():
    lora = LoRA(rank=64, targets=("mlp.c_proj",))
    new = flatten_dict(init_adapters(CONFIG, lora, jax.random.key(0)))
    a = np.stack([new[f"h_{i}", "mlp", "c_proj", "lora_a"] for i in range(2)])
    bound = 1 / math.sqrt(20)
    assert bound * 0.99 < np.abs(a).max() <= bound and abs(a.mean()) < bound / 20
    np.testing.assert_allclose(a.std(), bound / math.sqrt(3), rtol=0.03)
    assert not np.array_equal(a[0], a[1])
    assert not any(leaf.any() for path, leaf in new.items() if path[-1] == "lora_b")


def test_merge_is_w_plus_scaled_a_b(base, whole):
    merged, plain, leaves = map(flatten_dict, (merge(whole, LORA), base, whole))
    assert merged.keys() == plain.keys()
    for path, leaf in merged.items():
        exact = np.asarray(plain[path], np.float64)
        if path[-1] == "kernel":
            a, b = (np.asarray(leaves[*path[:-1], name], np.float64) for name in ("lora_a", "lora_b"))
            exact = exact + 5 / 3 * a @ b
        np.testing.assert_allclose(leaf, exact, atol=1e-6)
        assert path[-1] == "kernel" or np.array_equal(leaf, plain[path])


def test_merge_rounds_only_once(whole):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole)
    exact = merge(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow), LORA)
    assert_equal(merge(narrow, LORA), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact))


def test_without_adapters_there_is_the_base(base, whole):
    assert_equal(without_adapters(whole), base)
    assert_equal(split(whole, is_adapter)[1], base)


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (("c_attn",), MODULES[:1]),
        (("attn.c_proj",), MODULES[1:2]),
        (("c_proj",), [MODULES[1], MODULES[3]]),
        (("mlp.c_fc", "attn.c_attn"), [MODULES[0], MODULES[2]]),
        (("c_proj", "mlp.c_proj", "c_fc", "c_attn"), MODULES),
    ],
)
def test_targets_name_matrices_of_every_layer(targets, modules):
    listed = adapter_parameters(CONFIG, LoRA(targets=targets))
    names = [f"h.{i}.{module}.lora_{half}.weight" for i in range(2) for module in modules for half in "AB"]
    assert [p.hf_name for p in listed] == names
    assert [".".join(p.path[1:-1]) for p in listed[::2]] == 2 * modules


@pytest.mark.parametrize("name", TARGETS)
def test_every_valid_target_names_something(name):
    assert LoRA(targets=(name,)).modules


def test_rows_of_adapters_follow_their_matrices():
    by_path = {"/".join(p.path): p for p in adapter_parameters(CONFIG, LORA)}
    first, second = by_path["h_1/attn/c_attn/lora_a"], by_path["h_1/attn/c_attn/lora_b"]
    assert (first.row.path, first.row.pattern, first.shape) == ("h_{i}/attn/c_attn/lora_a", "D R", (12, 3))
    assert (second.row.path, second.row.pattern, second.shape) == ("h_{i}/attn/c_attn/lora_b", "R (3 H K)", (3, 36))
    assert by_path["h_0/mlp/c_proj/lora_a"].shape == (20, 3)
    assert all(p.row.decay for p in by_path.values())


def test_every_adapter_has_its_sharding():
    listed = adapter_parameters(CONFIG, LORA)
    shardings = flatten_dict(parameter_shardings(make_mesh(), listed))
    specs = {"/".join(path[1:]): tuple(sharding.spec) for path, sharding in shardings.items() if path[0] == "h_0"}
    assert len(shardings) == len(listed) == 16
    assert specs["attn/c_attn/lora_a"] == ("fsdp", None) and specs["attn/c_attn/lora_b"] == (None, "tensor")
    assert specs["mlp/c_proj/lora_a"] == ("tensor", None) and specs["mlp/c_proj/lora_b"] == (None, "fsdp")


def test_adapters_of_gpt2_are_few():
    config = GPTConfig.preset("gpt2")
    few = sum(math.prod(p.shape) for p in adapter_parameters(config, LoRA(rank=8)))
    assert few / count(config)["total"] < 0.01


def test_gradients_reach_adapters_and_follow_from_the_matrices(whole, batch):
    objective = pretrain(GPT(CONFIG))
    moving, frozen = split(whole, is_adapter)
    of_adapters = jax.grad(lambda moving: with_adapters(objective, LORA)(join(moving, frozen), batch, None).loss)
    of_matrices = jax.grad(lambda params: objective(params, batch, None).loss)
    grads, by_kernel = jax.jit(lambda: (of_adapters(moving), of_matrices(merge(whole, LORA))))()
    leaves, found, by_kernel = map(flatten_dict, (whole, grads, by_kernel))
    assert found.keys() == flatten_dict(moving).keys()
    for path in [path[:-1] for path in found if path[-1] == "lora_a"]:
        grad, a, b = by_kernel[*path, "kernel"], leaves[*path, "lora_a"], leaves[*path, "lora_b"]
        for name, expected in (("lora_a", grad @ b.T), ("lora_b", a.T @ grad)):
            np.testing.assert_allclose(found[*path, name], 5 / 3 * np.asarray(expected), rtol=1e-4, atol=1e-4)
            assert np.abs(found[*path, name]).max() > 1e-3


def test_a_step_moves_adapters_only(base, batch):
    def squares(params, batch, key):
        total = sum(jnp.square(leaf - 1).sum() for leaf in jax.tree.leaves(params))
        return Sums(total * batch.weights.sum(), batch.weights.sum())

    lora = LoRA(rank=3, alpha=5.0, dropout=0.3, targets=("c_attn", "c_proj"))
    begun = join(base, init_adapters(CONFIG, lora, jax.random.key(0)))
    step = jax.jit(make_step(with_adapters(squares, lora), optax.sgd(0.1), seed=0, accumulate=2))
    state = TrainState.create(begun, optax.sgd(0.1), is_adapter)
    ends = [step(state, batch)[0] for _ in range(2)]
    assert_equal(ends[0], ends[1])
    assert_equal(without_adapters(ends[0].whole), base)
    moved = flatten_dict(ends[0].params)
    assert all(is_adapter(path) for path in moved)
    # A gets no gradient while B is zero.
    assert all((leaf != flatten_dict(begun)[path]).any() == (path[-1] == "lora_b") for path, leaf in moved.items())


def test_dropout_masks_rows_of_a_by_the_key(whole):
    lora = LoRA(rank=3, alpha=5.0, dropout=0.25)
    one, same, other = (flatten_dict(merge(whole, lora, jax.random.key(seed))) for seed in (0, 0, 1))
    assert_equal(one, same)
    leaves, masks = flatten_dict(whole), []
    for path in (path for path in one if path[-1] == "kernel"):
        assert not np.array_equal(one[path], other[path])
        a, b = leaves[*path[:-1], "lora_a"], leaves[*path[:-1], "lora_b"]
        rows = np.asarray(one[path] - leaves[path]), 5 / 3 / 0.75 * np.asarray(a) @ np.asarray(b)
        kept = np.abs(rows[0]).max(-1) > 0
        np.testing.assert_allclose(rows[0], kept[:, None] * rows[1], atol=1e-6)
        masks.append(kept)
    assert 0.6 < np.concatenate(masks).mean() < 0.9
    assert not np.array_equal(masks[0], masks[4])
    assert_equal(merge(whole, lora), merge(whole, LORA))


def test_dropout_is_one_on_average(whole):
    lora = LoRA(rank=3, alpha=5.0, dropout=0.5)
    keys = jax.random.split(jax.random.key(0), 2000)
    merged = jax.jit(jax.vmap(lambda key: merge(whole, lora, key)["h_0"]["attn"]["c_proj"]["kernel"]))(keys)
    expected = merge(whole, lora)["h_0"]["attn"]["c_proj"]["kernel"]
    np.testing.assert_allclose(merged.mean(0), expected, atol=0.05)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, r"rank is 0; it must be a whole number from 1 up"),
        ({"rank": 2.0}, r"rank is 2\.0"),
        ({"rank": True}, r"rank is True"),
        ({"alpha": 0.0}, r"alpha is 0\.0; it must be a number above 0"),
        ({"alpha": 10**400}, r"alpha is 10{76}\.\.\.; "),
        ({"alpha": math.nan}, r"alpha is nan"),
        ({"alpha": "8"}, r"alpha is '8'"),
        ({"dropout": 1.0}, r"dropout is 1\.0; it must be in \[0, 1\)"),
        ({"targets": ()}, r"no targets; valid are attn\.c_attn, c_attn, attn\.c_proj, c_proj"),
        ({"targets": ("c_attn", "q_proj")}, r"'q_proj' is no matrix; valid are .*did you mean 'c_proj'"),
        ({"targets": ("wte",)}, r"'wte' is no matrix"),
        ({"targets": 5}, r"targets is 5; it must be a text"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        LoRA(**values)
