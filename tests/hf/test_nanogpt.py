import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from jaxgpt.cli import convert
from jaxgpt.decode.engine import generate
from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import cut_padding, load_pretrained, save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.verification.outputs import verify

ARGUMENTS = {"n_layer": 2, "n_head": 2, "n_embd": 12, "block_size": 16, "bias": True, "vocab_size": 61, "dropout": 0.1}


def make_checkpoint(folder, **changes):
    """Save what nanoGPT's train.py saves: a compiled model's state, its optimizer's, and arguments."""
    arguments = ARGUMENTS | changes
    D, V, T = arguments["n_embd"], arguments["vocab_size"], arguments["block_size"]
    shapes = {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (T, D)}
    for i in range(arguments["n_layer"]):
        linear = {"attn.c_attn": (3 * D, D), "attn.c_proj": (D, D), "mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}
        for name, shape in {"ln_1": (D,), "ln_2": (D,), **linear}.items():
            shapes[f"transformer.h.{i}.{name}.weight"] = shape
            shapes[f"transformer.h.{i}.{name}.bias"] = shape[:1]
    shapes |= {"transformer.ln_f.weight": (D,), "transformer.ln_f.bias": (D,)}
    torch.manual_seed(0)
    state = {name: torch.randn(shape) / 3 for name, shape in shapes.items()}
    if not arguments["bias"]:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".bias")}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    saved = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "model_args": arguments,
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "device": "cpu"},
    }
    torch.save(saved, folder / "ckpt.pt")
    return state


def nanogpt(state, tokens):
    """nanoGPT's forward pass, in functions: its linear weights are (out, in) and its GELU is exact."""

    def get(name):
        return state.get(f"transformer.{name}.weight"), state.get(f"transformer.{name}.bias")

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], *get(name), 1e-5)

    x = state["transformer.wte.weight"][tokens] + state["transformer.wpe.weight"][: tokens.shape[1]]
    for i in range(2):
        qkv = F.linear(norm(x, f"h.{i}.ln_1"), *get(f"h.{i}.attn.c_attn"))
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(heads.transpose(1, 2).flatten(2), *get(f"h.{i}.attn.c_proj"))
        inner = F.gelu(F.linear(norm(x, f"h.{i}.ln_2"), *get(f"h.{i}.mlp.c_fc")))
        x = x + F.linear(inner, *get(f"h.{i}.mlp.c_proj"))
    return F.linear(norm(x, "ln_f"), state["lm_head.weight"])


@pytest.mark.parametrize("bias", [True, False])
def test_same_function(tmp_path, bias):
    state = make_checkpoint(tmp_path, bias=bias)
    config, params = load_pretrained(tmp_path / "ckpt.pt", allow_pickle=True)
    assert (config.bias, config.n_positions, config.resid_pdrop, config.eos_token_id) == (bias, 16, 0.1, None)
    tokens = np.arange(32).reshape(2, 16)
    theirs = nanogpt(state, torch.tensor(tokens)).numpy()
    ours = GPT(config).apply({"params": params}, jnp.asarray(tokens))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std())


def test_folder_and_padded_vocabulary(tmp_path):
    make_checkpoint(tmp_path, vocab_size=50304)
    config, params = load_pretrained(tmp_path, allow_pickle=True)
    assert (config.vocab_size, config.eos_token_id) == (50304, 50256)
    assert params["wte"]["embedding"].shape == (50304, 12)


def test_a_checkpoint_is_converted_into_a_runs_folder_and_from_there_for_transformers(tmp_path, capsys):
    state = make_checkpoint(tmp_path)
    checkpoint, run, hf = tmp_path / "ckpt.pt", tmp_path / "run", tmp_path / "hf"
    with pytest.raises(SystemExit):
        convert.main([str(checkpoint), str(run)])
    assert "ckpt.pt is a pickle" in capsys.readouterr().err and not run.exists()
    convert.main([str(checkpoint), str(run), "--allow_pickle"])
    convert.main([str(run), str(hf), "--check"])
    assert "FAIL" not in capsys.readouterr().out
    loaded = GPT2LMHeadModel.from_pretrained(hf)
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, nanogpt(state, tokens), atol=2e-4, rtol=2e-4)


def test_rows_that_pad_the_table_are_known_and_never_chosen(tmp_path):
    """From nanoGPT's own padding, or else from the tokenizer beside the weights; in a run's folder as well."""
    make_checkpoint(tmp_path, vocab_size=50304)
    assert load_pretrained(tmp_path, allow_pickle=True)[0].tokenizer_vocab_size == 50257

    make_checkpoint(tmp_path, vocab_size=64)
    tokenizer = CharTokenizer("".join(map(chr, range(65, 75))))
    config, params = load_pretrained(tmp_path, allow_pickle=True)
    assert config.tokenizer_vocab_size is None
    tokenizer.save(tmp_path)
    config, params = load_pretrained(tmp_path, allow_pickle=True)
    save_params(tmp_path / "run", config, params)
    tokenizer.save(tmp_path / "run")
    save_pretrained(tmp_path / "hf", config, params)
    tokenizer.save(tmp_path / "hf")
    for config, params in (load_pretrained(tmp_path / "hf"), load_params(tmp_path / "run")):
        assert (config.vocab_size, config.tokenizer_vocab_size) == (64, 10)
        rows = generate(config, params, [[1]] * 9, max_new_tokens=5, temperature=9.0)
        assert max(map(max, rows)) < 10


def test_padding_is_cut_at_export(tmp_path):
    """For PyTorch a padded model is one of as many ids as its tokenizer has, and computes the same."""
    state = make_checkpoint(tmp_path, vocab_size=64)
    config, params = load_pretrained(tmp_path / "ckpt.pt", allow_pickle=True)
    tokenizer = CharTokenizer("".join(map(chr, range(65, 65 + 61))))
    save_pretrained(tmp_path / "hf", config, params, tokenizer=tokenizer)
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 61
    model, loading = GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert model.lm_head.weight.shape == (61, 12)
    assert not any(loading.values())
    tokens = torch.arange(16)[None]
    theirs = model.eval()(tokens).logits.detach().numpy()
    np.testing.assert_allclose(theirs, nanogpt(state, tokens).numpy()[..., :61], atol=1e-4 * theirs.std())
    cut = cut_padding(config, params, 61)
    assert {check.result for check in verify(tmp_path / "hf", *cut)} == {"pass", "not applicable"}


def test_padding_of_a_head_of_its_own_is_cut_too(tmp_path):
    config = GPTConfig(vocab_size=64, n_positions=16, n_embd=12, n_layer=1, n_head=2, tie_word_embeddings=False)
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    smaller, cut = cut_padding(config, params, 61)
    tokens = jnp.arange(16)[None]
    logits = GPT(config).apply({"params": params}, tokens)[0]
    np.testing.assert_allclose(GPT(smaller).apply({"params": cut}, tokens)[0], logits[..., :61], atol=1e-6)
    assert cut_padding(smaller, cut, 64) == (smaller, cut)


def test_is_a_pickle(tmp_path):
    make_checkpoint(tmp_path)
    with pytest.raises(UsageError, match=r"ckpt\.pt is a pickle.*allow_pickle"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "saved, message",
    [
        ({"weights": 1}, "not a checkpoint of nanoGPT"),
        ([1], "not a checkpoint of nanoGPT"),
        ({"model": {}, "model_args": {"n_layer": 2}}, "it must hold n_layer, n_head"),
        ({"model": {}, "model_args": ARGUMENTS | {"n_head": 5}}, "n_embd 12 is not a multiple of n_head 5"),
        ({"model": [], "model_args": ARGUMENTS}, "must be a state dict"),
        ({"model": {"a": 1}, "model_args": ARGUMENTS}, "'a' is a int"),
        ({"model": {}, "model_args": ARGUMENTS}, "missing: h.0.attn.c_attn.bias"),
    ],
)
def test_something_else(tmp_path, saved, message):
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match=message):
        load_pretrained(tmp_path, allow_pickle=True)
