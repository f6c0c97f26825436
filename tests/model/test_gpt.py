"""The model: the papers' formulas under every option, causal, packed, recomputed or in bf16 the same function."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT, MLP, Attention, Block, sinusoids

TINY = {"vocab_size": 19, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
OPTIONS = [
    {},
    {"bias": False},
    {"n_inner": 20},
    {"norm_position": "post"},
    {"position_embedding": "sinusoidal"},
    {"position_embedding": "sinusoidal", "norm_position": "post"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"layer_norm_epsilon": 0.1},
]


def draw_params(config: GPTConfig, std: float = 0.3) -> Any:
    """Draw every parameter; at the initial std of 0.02 attention is nearly uniform, and errors would hide in it."""
    generator = np.random.default_rng(0)
    return map_parameters(config, lambda p: jnp.asarray(generator.normal(0, std, p.shape), jnp.float32))


def draw_tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (rows, length), 0, TINY["vocab_size"])


def reference(config: GPTConfig, params: Any, tokens: np.ndarray, prefix: int = 1) -> np.ndarray:
    """One row's logits in f64, position by position, as the papers have it; the first tokens all see each other."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def linear(name: str, layer: Any, x: np.ndarray) -> np.ndarray:
        return x @ layer[name]["kernel"] + layer[name].get("bias", 0)

    def norm(layer: Any, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + config.layer_norm_epsilon) * layer["scale"] + layer.get("bias", 0)

    def attend(i: int, layer: Any, x: np.ndarray) -> np.ndarray:
        out = np.zeros_like(x)
        q, k, v = np.split(linear("c_attn", layer, x), 3, axis=-1)
        scale = 1 / math.sqrt(config.head_dim) if config.scale_attn_weights else 1
        scale /= i + 1 if config.scale_attn_by_inverse_layer_idx else 1
        for head in np.split(np.arange(config.n_embd), config.n_head):
            for t in range(len(x)):
                seen = max(t + 1, prefix)
                weights = np.exp(scale * k[:seen, head] @ q[t, head])
                out[t, head] = weights @ v[:seen, head] / weights.sum()
        return linear("c_proj", layer, out)

    def feed_forward(layer: Any, x: np.ndarray) -> np.ndarray:
        h = linear("c_fc", layer, x)
        return linear("c_proj", layer, h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))))

    wte = params["wte"]["embedding"]
    if config.position_embedding == "learned":
        x = wte[tokens] + params["wpe"]["embedding"][: len(tokens)]
    else:
        x = wte[tokens] * math.sqrt(config.n_embd) + sinusoids(config.n_positions, config.n_embd)[: len(tokens)]
    for i in range(config.n_layer):
        block = params[f"h_{i}"]
        if config.norm_position == "pre":
            x = x + attend(i, block["attn"], norm(block["ln_1"], x))
            x = x + feed_forward(block["mlp"], norm(block["ln_2"], x))
        else:
            x = norm(block["ln_1"], x + attend(i, block["attn"], x))
            x = norm(block["ln_2"], x + feed_forward(block["mlp"], x))
    if config.norm_position == "pre":
        x = norm(params["ln_f"], x)
    return x @ (wte if config.tie_word_embeddings else params["lm_head"]["embedding"]).T


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_formulas_of_the_papers(options: dict[str, Any]):
    config = GPTConfig(**TINY, **options)
    params, tokens = draw_params(config), draw_tokens(2, 9)
    logits, cache = jax.jit(GPT(config).apply)({"params": params}, tokens)
    expected = np.stack([reference(config, params, row) for row in np.asarray(tokens)])
    assert cache is None
    # f32 has 24 bits; two layers of sums over 12 to 48 terms lose about 3 of them.
    np.testing.assert_allclose(logits, expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("autodiff", [True, False])
def test_a_mask_may_let_a_prefix_see_itself_whole(autodiff: bool):
    config, prefix = GPTConfig(**TINY), np.asarray([3, 5])
    params, tokens = draw_params(config), draw_tokens(2, 9)
    mask = np.tri(9, dtype=bool) | (np.arange(9) < prefix[:, None, None])
    apply = jax.jit(lambda **inputs: GPT(config, autodiff=autodiff).apply({"params": params}, tokens, **inputs)[0])
    expected = np.stack([reference(config, params, *row) for row in zip(np.asarray(tokens), prefix, strict=True)])
    np.testing.assert_allclose(apply(attention_mask=mask[:, None]), expected, atol=1e-5 * expected.std())
    causal = apply(attention_mask=np.tri(9, dtype=bool)[None, None])
    np.testing.assert_allclose(causal, apply(), atol=1e-5 * expected.std())


@pytest.mark.parametrize("options", [{}, {"position_embedding": "sinusoidal"}], ids=str)
def test_embeddings_may_stand_for_tokens(options: dict[str, Any]):
    config = GPTConfig(**TINY, **options)
    params, tokens = draw_params(config), draw_tokens(2, 9)
    apply = jax.jit(lambda *inputs, **named: GPT(config).apply({"params": params}, *inputs, **named)[0])
    embeddings = params["wte"]["embedding"][tokens]
    np.testing.assert_array_equal(apply(inputs_embeds=embeddings), apply(tokens))


def test_one_of_tokens_and_embeddings_and_one_mask_are_taken():
    config, tokens = GPTConfig(**TINY), draw_tokens(2, 9)
    params, mask = draw_params(config), jnp.ones((1, 1, 9, 9), bool)
    for given, says in (
        ({}, "either tokens or inputs_embeds"),
        ({"tokens": tokens, "inputs_embeds": jnp.zeros((2, 9, 12))}, "either tokens or inputs_embeds"),
        ({"tokens": tokens, "segment_ids": tokens, "attention_mask": mask}, "segment_ids: not with attention_mask"),
    ):
        with pytest.raises(UsageError, match=says):
            GPT(config).apply({"params": params}, **given)


@pytest.mark.parametrize("options", [{}, {"norm_position": "post", "scale_attn_weights": False}], ids=str)
def test_no_position_depends_on_a_later_one(options: dict[str, Any]):
    config, length = GPTConfig(**TINY, **options), 6
    params, tokens = draw_params(config), draw_tokens(1, length)

    def logits(positions: jax.Array) -> jax.Array:
        # A row of wpe is read at one position only, and not by the head: it stands for that position's embedding.
        return GPT(config).apply({"params": {**params, "wpe": {"embedding": positions}}}, tokens)[0][0]

    jacobian = jax.jit(jax.jacrev(logits))(params["wpe"]["embedding"])[:, :, :length]  # (T, V, S, D)
    depends = np.abs(jacobian).max((1, 3)) > 0
    np.testing.assert_array_equal(depends, np.tri(length, dtype=bool))


def test_packed_documents_are_as_alone():
    config, lengths = GPTConfig(**TINY), (5, 1, 4)
    params, documents = draw_params(config), draw_tokens(3, 12)
    apply = jax.jit(GPT(config).apply)
    packed, _ = apply(
        {"params": params},
        jnp.concatenate([*(row[:n] for row, n in zip(documents, lengths, strict=True)), jnp.zeros(2, jnp.int32)])[None],
        positions=jnp.array([[0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 0, 0]]),
        segment_ids=jnp.array([[1] * 5 + [2] + [3] * 4 + [0] * 2]),
    )
    rows, _ = apply({"params": params}, documents)
    alone = jnp.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])
    np.testing.assert_allclose(packed[0, :10], alone, rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(packed).all()


def test_recomputing_changes_neither_loss_nor_gradients():
    config = GPTConfig(**{**TINY, "n_layer": 1}, resid_pdrop=0.5, attn_pdrop=0.5)
    params, tokens = draw_params(config), draw_tokens(2, 9)

    def loss(remat: bool) -> Any:
        def function(params: Any) -> jax.Array:
            rngs = {"dropout": jax.random.key(0, impl="rbg")}  # compiles in a tenth of the time
            logits, _ = GPT(config, remat=remat).apply({"params": params}, tokens, deterministic=False, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

        return jax.jit(jax.value_and_grad(function))(params)

    # The same values are dropped, though they are drawn twice; only sums are fused differently.
    for stored, recomputed in zip(jax.tree.leaves(loss(False)), jax.tree.leaves(loss(True)), strict=True):
        np.testing.assert_allclose(recomputed, stored, rtol=1e-4, atol=1e-6)


def test_in_bf16_parameters_and_logits_stay_f32_and_results_are_close():
    config = GPTConfig(**TINY)
    params, tokens = draw_params(config), draw_tokens(2, 9)
    half = GPT(config, jnp.bfloat16)
    made = jax.eval_shape(half.init, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    close, exact = (jax.jit(model.apply)({"params": params}, tokens)[0] for model in (half, GPT(config)))
    assert close.dtype == jnp.float32
    # bf16 keeps 8 bits, and errors of a dozen roundings add up.
    assert 0 < jnp.linalg.norm(close - exact) < 0.03 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("rate", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_each_dropout_acts_in_training_only_and_by_its_key(rate: str):
    rates = {**dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0), rate: 0.5}
    config = GPTConfig(**{**TINY, "n_layer": 1}, **rates)
    params, tokens = draw_params(config), draw_tokens(2, 9)

    @jax.jit
    def drop(key: jax.Array) -> jax.Array:
        return GPT(config).apply({"params": params}, tokens, deterministic=False, rngs={"dropout": key})[0]

    first, again, other = (drop(jax.random.key(seed)) for seed in (0, 0, 1))
    kept, _ = jax.jit(GPT(config).apply)({"params": params}, tokens)
    assert (first == again).all()
    # Each token sees what was dropped before it, so nearly all logits differ.
    assert (first != other).mean() > 0.8 and (first != kept).mean() > 0.8
    np.testing.assert_allclose(kept[0], reference(config, params, np.asarray(tokens[0])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("branch", [Attention, MLP])
def test_dropout_of_a_branch_keeps_the_mean(branch: type[Attention] | type[MLP]):
    config = GPTConfig(**TINY, resid_pdrop=0.4, attn_pdrop=0.4)
    params = draw_params(config)["h_0"]
    x = jax.random.normal(jax.random.key(0), (1, 4, config.n_embd))
    keys = jax.random.split(jax.random.key(1), 1024)

    def apply(deterministic: bool, key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        if branch is MLP:
            return MLP(config).apply({"params": params["mlp"]}, x, deterministic, rngs=rngs)
        return Attention(config, 0).apply({"params": params["attn"]}, x, None, None, deterministic, rngs=rngs)[0]

    dropped = jax.jit(jax.vmap(lambda key: apply(False, key)))(keys)
    error = dropped.std(0) / len(keys) ** 0.5
    assert (jnp.abs(dropped.mean(0) - apply(True, keys[0])) <= 5 * error).all()


def test_sinusoids():
    table = sinusoids(50, 12)
    for position in range(50):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            np.testing.assert_allclose(table[position, 2 * i], math.sin(angle), atol=1e-6)
            np.testing.assert_allclose(table[position, 2 * i + 1], math.cos(angle), atol=1e-6)


def draw_initial(n_layer: int) -> tuple[GPTConfig, Any]:
    """Draw what `init` draws, wide enough for statistics; not compiled, as layers then share their kernels."""
    config = GPTConfig(n_embd=192, n_layer=n_layer)
    return config, GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def initial() -> tuple[GPTConfig, Any]:
    return draw_initial(8)


def test_initial_parameters(initial: tuple[GPTConfig, Any]):
    config, params = initial
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 1:
            assert (leaf == (1 if name.endswith("scale") else 0)).all(), name
        else:
            std = 0.02 / math.sqrt(2 * config.n_layer) if "c_proj" in name else 0.02
            # Five standard errors of a standard deviation.
            np.testing.assert_allclose(leaf.std(), std, rtol=5 / math.sqrt(2 * leaf.size), err_msg=name)


def test_initial_loss_is_that_of_a_uniform_guess(initial: tuple[GPTConfig, Any]):
    config, params = initial
    tokens = jax.random.randint(jax.random.key(1), (2, 65), 0, config.vocab_size)
    logits, _ = jax.jit(GPT(config).apply)({"params": params}, tokens[:, :-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    np.testing.assert_allclose(loss, math.log(config.vocab_size), rtol=0.02)


def test_the_initial_stream_grows_evenly_to_the_same_size_at_any_depth(initial: tuple[GPTConfig, Any]):
    """What 1/sqrt(2 L) is for: each block adds the same variance, and all of them together the same at any L."""
    tokens = jax.random.randint(jax.random.key(1), (2, 64), 0, 100)

    def variances(config: GPTConfig, params: Any) -> np.ndarray:
        capture = {"capture_intermediates": lambda module, _: isinstance(module, Block), "mutable": ["intermediates"]}
        _, seen = GPT(config).apply({"params": params}, tokens, **capture)
        return np.array([seen["intermediates"][f"h_{i}"]["__call__"][0][0].var() for i in range(config.n_layer)])

    shallow, deep = variances(*draw_initial(2)), variances(*initial)
    np.testing.assert_allclose(deep[-1], shallow[-1], rtol=0.1)
    added = np.diff(deep)
    assert added.min() > 0 and added.max() < 2 * added.min()


def test_rows_longer_than_the_context_are_refused():
    config = GPTConfig(vocab_size=5, n_positions=4, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="rows of 5 tokens, but n_positions is 4"):
        jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
