"""What `inspect` records is what transformers' GPT-2 computes, and costs nothing where nobody asks for it."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.step import DecodeState, decode
from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained
from jaxgpt.inspect import inspect, logit_lens
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

SIZES = {"vocab_size": 97, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3}
ROWS = [[5, 3, 8, 90, 2, 14, 7], [11, 4, 4], [60, 1, 2, 3, 5]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """HF's model with random weights, and the same here."""
    torch.manual_seed(0)
    settings = {**SIZES, "bos_token_id": None, "eos_token_id": None, "scale_attn_by_inverse_layer_idx": True}
    model = GPT2LMHeadModel(GPT2Config(**settings, initializer_range=0.15, attn_implementation="eager")).eval()
    model.save_pretrained(folder := tmp_path_factory.mktemp("hf"))
    return model, *load_pretrained(folder)


def theirs(model, rows):
    """Return HF's output on rows that are padded behind."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        return model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)


def test_hidden_states_and_attention_are_transformers_on_ragged_rows(pair):
    model, config, params = pair
    output, found = theirs(model, ROWS), inspect(config, params, ROWS)
    for row, ids in enumerate(ROWS):
        own = slice(len(ids))
        ours = [*found.resid_pre[:, row, own], found.final_norm[row, own]]
        for mine, other in zip(ours, output.hidden_states, strict=True):
            np.testing.assert_allclose(mine, other[row, own].numpy(), atol=2e-5)
        for mine, other in zip(found.attention.weights[:, row, :, own, own], output.attentions, strict=True):
            np.testing.assert_allclose(mine, other[row, :, own, own].numpy(), atol=1e-5)
        np.testing.assert_allclose(found.logits[row, own], output.logits[row, own].numpy(), atol=5e-5)
    assert found.lengths.tolist() == [7, 3, 5]


def test_with_a_cache_they_are_those_of_the_whole_rows(pair):
    _, config, params = pair
    rows = np.asarray(ROWS[0] + ROWS[1]).reshape(2, 5)
    whole = inspect(config, params, rows)
    cache = KVCache.empty(config, jnp.zeros(2, jnp.int32), 5, jnp.float32)
    first = inspect(config, params, rows[:, :3], cache=cache)
    second = inspect(config, params, rows[:, 3:], cache=first.cache)
    assert second.cache is not None and int(second.cache.length) == 5
    np.testing.assert_allclose(second.resid_pre, whole.resid_pre[:, :, 3:], atol=2e-5)
    np.testing.assert_allclose(second.attention.weights, whole.attention.weights[..., 3:, :], atol=1e-5)
    np.testing.assert_allclose(second.logits, whole.logits[:, 3:], atol=5e-5)


def test_with_embeddings_for_tokens_and_any_mask_it_is_transformers(pair):
    """A prefix of three tokens that see each other in one row; and masks at random, one for each head."""
    model, config, params = pair
    rows = np.asarray(ROWS[0] + ROWS[0][::-1]).reshape(2, 7)
    embedded = np.random.default_rng(0).normal(size=(2, 7, 24)).astype("f4")
    prefix = np.tri(7, dtype=bool)[None, None].repeat(2, 0)
    prefix[0, :, :3, :3] = True
    drawn = (np.random.default_rng(1).random((1, 3, 7, 7)) < 0.5) | np.eye(7, dtype=bool)
    ours = jax.jit(lambda **inputs: GPT(config).apply({"params": params}, **inputs)[0])
    for mask in (prefix, drawn):
        added = torch.where(torch.tensor(mask), 0.0, torch.finfo(torch.float32).min)
        with torch.no_grad():
            output = model(torch.tensor(rows), attention_mask=added, output_attentions=True)
            other = model(inputs_embeds=torch.tensor(embedded), attention_mask=added)
        found = inspect(config, params, rows, attention_mask=mask)
        np.testing.assert_allclose(found.logits, output.logits.numpy(), atol=5e-5)
        for mine, theirs in zip(found.attention.weights, output.attentions, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)
        np.testing.assert_allclose(ours(inputs_embeds=embedded, attention_mask=mask), other.logits.numpy(), atol=5e-5)
    with pytest.raises(UsageError, match="attention_mask: rows must be of one length"):
        inspect(config, params, ROWS, attention_mask=prefix)


@pytest.mark.parametrize(
    "options", [{}, {"norm_position": "post"}, {"position_embedding": "sinusoidal"}, {"labels": ("a", "b")}], ids=str
)
def test_the_values_follow_from_each_other(draw, options):
    config = GPTConfig(**SIZES, bias=False, **options)
    found = inspect(config, params := draw(config), ROWS[:1])
    stages = found.attention
    embedded = found.token_embeddings + found.position_embeddings
    np.testing.assert_allclose(found.resid_pre[0], embedded, atol=1e-6)
    if config.norm_position == "pre":
        np.testing.assert_allclose(found.resid_mid, found.resid_pre + stages.out, atol=1e-4)
        np.testing.assert_allclose(found.resid_pre[1], found.resid_mid[0] + found.mlp_out[0], atol=1e-4)
    np.testing.assert_allclose(stages.weights.sum(-1), 1, atol=1e-5)
    assert (np.triu(stages.weights, 1) == 0).all()
    np.testing.assert_allclose(stages.scaled, stages.scores * config.head_dim**-0.5, rtol=1e-5, atol=1e-6)
    w_o = np.stack([params[f"h_{i}"]["attn"]["c_proj"]["kernel"] for i in range(2)])
    joined = stages.heads.swapaxes(2, 3).reshape(stages.out.shape)
    np.testing.assert_allclose(stages.out, np.einsum("LBTD,LDE->LBTE", joined, w_o), rtol=1e-4, atol=1e-3)
    assert found.lens is not None and found.lens.shape == (3, 1, 7, 97)
    np.testing.assert_allclose(found.lens[-1], found.logits, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.lens[1], logit_lens(config, params, found.resid_pre[1]), rtol=1e-5, atol=1e-4)
    assert (found.scores is None) == (config.labels is None)


def test_nobody_pays_for_it_who_does_not_ask(tiny, monkeypatch, unchecked_types):
    """The train step and the decode step are the same programs as without a place where values are left."""

    def programs():
        jax.clear_caches()
        model = GPT(replace(tiny.config, embd_pdrop=0.0))
        progress = DecodeState(
            jnp.zeros((1, 8), jnp.int32), jnp.zeros(1, bool), jnp.asarray(0, jnp.int32),
            jax.random.split(jax.random.key(0), 1), jnp.zeros(0, jnp.int32),
        )  # fmt: skip
        cache = KVCache.empty(model.config, jnp.zeros(1, jnp.int32), 8, jnp.float32, new=False)
        decoding = decode.lower(model, Sampling(), tiny.params, cache, progress, jnp.asarray(3))
        return tiny.step.lower(tiny.abstract, tiny.batches(0)).as_text(), decoding.as_text()

    with_places = programs()
    monkeypatch.setattr(nn.Module, "sow", lambda *_, **__: False)
    monkeypatch.setattr(nn.Module, "is_mutable_collection", lambda *_: False)
    assert programs() == with_places


@pytest.mark.parametrize(
    ("tokens", "says"),
    [([], "none to look at"), ([[]], "none to look at"), ([[0] * 25], "25 is longer than the model's context of 24"),
     ([[1], [2, 97]], "row 1 has the id 97; the model's are 0 to 96")],
    ids=["nothing", "empty", "long", "unknown"],
)  # fmt: skip
def test_bad_tokens_are_refused(pair, tokens, says):
    with pytest.raises(UsageError, match=says):
        inspect(*pair[1:], tokens)
