import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from jaxgpt.decode import engine, step
from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.draft import PromptLookup
from jaxgpt.decode.engine import generate, stream
from jaxgpt.decode.rows import bucket
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.errors import UsageError
from jaxgpt.inspect import token_log_probs
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.cache import KVCache
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT

SAMPLED = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.2}


def greedy_without_cache(config: GPTConfig, params, prompt: list[int], count: int) -> list[int]:
    """The definition: each token from all of its context, which is cut to its last half when it overflows."""
    ids, begin = list(prompt), 0
    logits_of = jax.jit(lambda tokens: GPT(config).apply({"params": params}, tokens)[0])
    for _ in range(count):
        if len(ids) - begin > config.n_positions:
            begin = len(ids) - config.n_positions // 2
        context = ids[begin:]
        # Padding on the right changes nothing under a causal mask, and compiles once.
        padded = context + [0] * (config.n_positions - len(context))
        ids.append(int(jnp.argmax(logits_of(jnp.asarray([padded]))[0, len(context) - 1])))
    return ids[len(prompt) :]


def test_greedy_ids_are_those_computed_without_a_cache(config, params, prompts):
    expected = [greedy_without_cache(config, params, prompt, 20) for prompt in prompts]
    assert generate(config, params, prompts, max_new_tokens=20) == expected


@pytest.mark.parametrize(
    "change", [{"position_embedding": "sinusoidal"}, {"norm_position": "post"}, {"tie_word_embeddings": False}]
)
def test_so_they_are_in_variants_of_the_architecture(config, prompts, change):
    config = dataclasses.replace(config, **change)
    params = GPT(config).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    expected = [greedy_without_cache(config, params, prompt, 8) for prompt in prompts]
    assert generate(config, params, prompts, max_new_tokens=8) == expected


def test_greedy_ids_are_those_of_hugging_face(prompts):
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
    hf_config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=3)
    hf = GPT2LMHeadModel(hf_config).eval()
    config = GPTConfig.from_hf(hf_config.to_dict())
    state = hf.transformer.state_dict()
    params = map_parameters(config, lambda parameter: jnp.asarray(state[parameter.hf_name].numpy()))
    ours = generate(config, params, prompts, max_new_tokens=40, eos_token_id=3, repetition_penalty=1.3)
    for prompt, new in zip(prompts, ours, strict=True):
        theirs = hf.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=1.3,
            pad_token_id=0,
        )
        assert new == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(config, params, prompts, options):
    together = generate(config, params, prompts, max_new_tokens=16, seed=3, **options)
    assert together == [generate(config, params, [p], max_new_tokens=16, seed=3, **options)[0] for p in prompts]
    assert together[::-1] == generate(config, params, prompts[::-1], max_new_tokens=16, seed=3, **options)


@pytest.mark.parametrize("options", [{}, SAMPLED])
@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_stream_yields_what_generate_returns(config, params, prompts, options, overflow):
    common = {"max_new_tokens": 20 if overflow == "error" else 70, "eos_token_id": (2, 3, 5), "overflow": overflow}
    rows = [[] for _ in prompts]
    for chosen in stream(config, params, prompts, **options, **common):
        for row, token in zip(rows, chosen, strict=True):
            row += [token]
    expected = generate(config, params, prompts, **options, **common)
    assert [[token for token in row if token is not None] for row in rows] == expected
    assert all(row[len(new) :] == [None] * (len(row) - len(new)) for row, new in zip(rows, expected, strict=True))


def test_a_seed_gives_the_same_samples_and_another_seed_others(config, params, prompts):
    draw = partial(generate, config, params, prompts, max_new_tokens=16, temperature=1.0)
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)


def test_samples_of_one_prompt_differ(config, params):
    rows = generate(config, params, [[1, 2, 3]] * 4, max_new_tokens=16, temperature=1.0)
    assert len(set(map(tuple, rows))) == 4


def test_samples_follow_the_models_distribution(config, params):
    logits, _ = GPT(config).apply({"params": params}, jnp.asarray([[1, 2, 3]]))
    expected = np.asarray(jax.nn.softmax(logits[0, -1]))
    rows = generate(config, params, [[1, 2, 3]] * 1000, max_new_tokens=1, temperature=1.0)
    observed = np.bincount(np.ravel(rows), minlength=97) / 1000
    assert np.abs(observed - expected).max() < 4 * np.sqrt(expected.max() / 1000)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_stop_id_ends_its_row_and_is_returned(config, params, prompts, as_tuple):
    free = generate(config, params, prompts, max_new_tokens=16)
    stop = free[0][4]
    rows = generate(config, params, prompts, max_new_tokens=16, eos_token_id=(stop, 96) if as_tuple else stop)
    for row, whole in zip(rows, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else 16
        assert row == whole[:end]
    assert len(rows[0]) < 16


def test_by_default_the_configs_own_ids_end_a_row_and_none_does_if_so_asked(config, params, prompts):
    free = generate(config, params, prompts, max_new_tokens=16)
    stop = (free[0][4], 96, 500)
    own = dataclasses.replace(config, eos_token_id=stop)
    expected = generate(config, params, prompts, max_new_tokens=16, eos_token_id=stop)
    assert generate(own, params, prompts, max_new_tokens=16) == expected != free
    assert generate(own, params, prompts, max_new_tokens=16, eos_token_id=None) == free
    assert generate_many(own, params, prompts, max_new_tokens=16, batch_size=2) == expected
    steps = list(stream(own, params, prompts[:1], max_new_tokens=16))
    assert [token for [token] in steps] == expected[0]


def test_rows_that_pad_the_table_are_not_chosen_by_default(config, params):
    padded = dataclasses.replace(config, tokenizer_vocab_size=10)
    how = {"max_new_tokens": 30, "temperature": 3.0}
    rows = generate(padded, params, [[1, 2]] * 8, **how)
    assert rows == generate(config, params, [[1, 2]] * 8, vocab_size=10, **how)
    assert max(map(max, rows)) < 10 <= max(map(max, generate(padded, params, [[1, 2]] * 8, vocab_size=97, **how)))
    many = generate_many(padded, params, [[1, 2]] * 8, max_new_tokens=30, batch_size=8, temperature=3.0)
    assert many == rows


@pytest.mark.usefixtures("unchecked_types")
def test_arrays_and_their_numbers_are_lists_and_numbers(config, params):
    prompts, stop = [[5, 6, 7], [1, 2, 3]], [40, 41]
    plain = {"max_new_tokens": 6, "temperature": 0.5, "top_k": 3, "seed": 5, "eos_token_id": stop}
    expected = generate(config, params, prompts, **plain)
    for array in (np.asarray, jnp.asarray):
        same = {name: array(value) for name, value in plain.items()}
        assert generate(config, params, array(prompts), **same) == expected
        assert generate(config, params, [array(prompt) for prompt in prompts], **same) == expected
        many = {**same, "max_new_tokens": array([6, 6]), "batch_size": array(2)}
        assert generate_many(config, params, array(prompts), **many) == expected


def test_when_all_rows_have_ended_no_more_steps_are_taken(config, params, monkeypatch):
    first = generate(config, params, [[1, 2]], max_new_tokens=1)[0][0]
    monkeypatch.setattr(engine, "decode", None)
    assert generate(config, params, [[1, 2]], max_new_tokens=20, eos_token_id=first) == [[first]]


def test_a_sliding_context_equals_the_same_windows_computed_from_scratch(config, params, prompts):
    long = [list(range(90)), list(range(32)), *prompts]  # longer than the context, just as long, and shorter
    expected = [greedy_without_cache(config, params, prompt, 75) for prompt in long]
    assert generate(config, params, long, max_new_tokens=75, overflow="slide") == expected


def test_a_context_can_be_filled_to_its_last_position(config, params):
    for length in (1, 31):
        [row] = generate(config, params, [[7] * length], max_new_tokens=32 - length)
        assert row == greedy_without_cache(config, params, [7] * length, 32 - length)


@pytest.mark.parametrize("draft", [None, PromptLookup(tokens=2)], ids=["plain", "draft"])
def test_log_probs_are_those_of_the_models_own_distribution(config, params, prompts, draft):
    """Whatever sampling made of it; and the tokens are the same as without."""
    options = {"max_new_tokens": 9, "temperature": 0.7, "top_k": 5, "seed": 3, "draft": draft}
    plain = generate(config, params, prompts, **options)
    options["eos_token_id"] = plain[0][4]
    new, log_probs = generate(config, params, prompts, return_log_probs=True, **options)
    assert new == generate(config, params, prompts, **options) and len(new[0]) <= 5
    for prompt, ids, found in zip(prompts, new, log_probs, strict=True):
        np.testing.assert_allclose(found, token_log_probs(config, params, [*prompt, *ids])[-len(ids) :], atol=1e-4)


def test_bfloat16_is_computed_in_bfloat16(config, params):
    rows = generate(config, params, [[1, 2, 3]], max_new_tokens=8, dtype=jnp.bfloat16)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x, params)
    assert rows == generate(config, half, [[1, 2, 3]], max_new_tokens=8, dtype=jnp.bfloat16)


def test_padded_ids_are_never_chosen(config, params):
    rows = generate(config, params, [[1, 2]] * 8, max_new_tokens=30, temperature=3.0, vocab_size=10)
    assert max(map(max, rows)) < 10


def test_an_empty_prompt_starts_from_the_token_that_begins_a_text(config, params):
    begun = dataclasses.replace(config, bos_token_id=4)
    ended = dataclasses.replace(config, eos_token_id=(500, 4))
    expected = generate(config, params, [[4]], max_new_tokens=8)
    assert generate(begun, params, [[]], max_new_tokens=8) == expected
    assert generate(ended, params, [[]], max_new_tokens=8, eos_token_id=None) == expected


def test_nothing_is_a_valid_request(config, params):
    assert generate(config, params, [[1], [2]], max_new_tokens=0) == [[], []]
    assert generate(config, params, [], max_new_tokens=5) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], [97]], {}, "prompt 1 has the id 97; the model's are 0 to 96"),
        ([[-1]], {}, "prompt 0 has the id -1; the model's are 0 to 96"),
        ([[1], []], {}, "prompt 1 is empty, and the model has no token that begins a text"),
        ([[1] * 30], {}, "a prompt of 30 tokens and 3 new ones make 33, but the model's context is 32"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
        ([[1]], {"seed": -1}, "seed is -1; it must be from 0 to 2^32 - 1"),
        ([[1]], {"temperature": -0.5}, "temperature is -0.5; it must be 0 (take the likeliest) or a positive number"),
        ([[1]], {"top_k": 0}, "top_k is 0; it must be a whole number from 1 up"),
        ([[1]], {"max_new_tokens": float("nan")}, "max_new_tokens is nan; it must be 0 or more, and a whole number"),
        ([[1]], {"max_new_tokens": True}, "max_new_tokens is True; it must be 0 or more, and a whole number"),
        ([1, 2], {}, "prompts is [1, 2]; it must be a list of lists of ids"),
        ("Once", {}, "prompts is 'Once'; it must be a list of lists of ids"),
        (["Once"], {}, "prompts is ['Once']; it must be a list of lists of ids"),
        ([[1.0]], {}, "prompt 0[0] is 1.0; it must be a whole number"),
        (np.ones((1, 2)), {}, "prompt 0 is an array of float64 of shape (2,); it must be a list of token ids"),
        ([[1]], {"eos_token_id": "end"}, "eos_token_id is 'end'; it must be one of config"),
        ([[1]], {"eos_token_id": [1.5]}, "eos_token_id[0] is 1.5; it must be a whole number"),
        ([[1]], {"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, bfloat16, float16"),
        ([[1]], {"draft": "ngram"}, "draft is 'ngram'; it must be a PromptLookup or a DraftModel"),
        ([[1]], {"return_log_probs": "no"}, "return_log_probs is 'no'; it must be True or False"),
        ([[1]], {}, "params is None; it must be a model's parameters"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_input_is_refused_before_anything_is_compiled(config, prompts, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(config, None, prompts, **{"max_new_tokens": 3, **options})


def test_parameters_of_another_config_are_refused(config, params):
    for wrong in ({"params": params}, {**params, "wte": {"embedding": params["wte"]["embedding"][:5]}}):
        with pytest.raises(UsageError, match="the parameters do not fit the config: "):
            generate(config, wrong, [[1]], max_new_tokens=1)


def test_sizes_are_rounded_up_to_few_buckets():
    sizes = [bucket(n) for n in range(1, 1025)]
    assert all(n <= size <= max(16 * -(-n // 16), 1.25 * n) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and len(set(sizes)) <= 24


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.usefixtures("unchecked_types")  # what `lower` keeps of its arguments are no arrays
def test_a_decode_step_never_copies_the_cache(config, params, batch):
    size = 64
    rows = jnp.zeros(batch, jnp.int32)
    cache = KVCache.empty(config, rows, size, jnp.float32, new=False)
    keys = jax.random.split(jax.random.key(0), batch)
    tokens = jnp.zeros((batch, size), jnp.int32)
    progress = step.DecodeState(tokens, rows > 0, jnp.asarray(0), keys, jnp.zeros(0, jnp.int32))
    program = step.decode.lower(GPT(config), Sampling(), params, cache, progress, jnp.asarray(9)).compile().as_text()
    buffer = rf"f32\[[0-9,]*{size},{config.head_dim}\]"
    assert re.findall(rf"{buffer}\S* (fusion|dynamic-update-slice)\(", program)
    assert not re.findall(rf"{buffer}\S* copy\(", program)


def test_a_logits_processor_comes_first_and_is_told_what_the_row_has(draw):
    config = GPTConfig(17, 8, n_embd=8, n_layer=1, n_head=2, eos_token_id=None)
    params = draw(config)

    def never_again(logits, tokens, present):
        there = jnp.zeros(logits.shape, bool).at[jnp.arange(len(tokens))[:, None], tokens].max(present)
        return jnp.where(there, -jnp.inf, logits)

    rows = generate(config, params, [[3, 1], [5]], max_new_tokens=6, logits_processor=never_again)
    assert all(len({*prompt, *new}) == len(prompt) + 6 for prompt, new in zip([[3, 1], [5]], rows, strict=True))
