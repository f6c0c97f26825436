import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.draft import DraftModel, PromptLookup
from jaxgpt.decode.engine import generate, stream
from jaxgpt.decode.sampling_config import Sampling
from jaxgpt.decode.speculative import speculate, verify
from jaxgpt.decode.step import DecodeState, prefill
from jaxgpt.errors import UsageError
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import GPT

SAMPLED = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.2}
LIKELY = {"temperature": 0.4, "repetition_penalty": 1.1}  # repeats itself often, but not always


@pytest.fixture(scope="module")
def drafts(config, params) -> dict[str, PromptLookup | DraftModel]:
    """Drafts that are right at times and always."""
    smaller = dataclasses.replace(config, n_layer=1)
    return {
        "lookup": PromptLookup(tokens=5, ngram=1),
        "half": DraftModel(smaller, {name: leaf for name, leaf in params.items() if name != "h_1"}, tokens=3),
        "itself": DraftModel(config, params, tokens=4),
    }


@pytest.mark.parametrize(
    ("kind", "options", "rows"),
    [
        ("lookup", {}, 4),
        ("lookup", SAMPLED, 4),
        ("lookup", LIKELY, 1),
        ("half", {}, 1),
        ("half", LIKELY, 4),
    ],
)
def test_a_draft_changes_no_token(config, params, prompts, drafts, kind, options, rows):
    run = partial(generate, config, params, prompts[:rows], max_new_tokens=20, seed=3, **options)
    assert run(draft=drafts[kind]) == run()


def test_nor_do_64_bits_that_jax_counts_in(config, params, prompts, drafts):
    run = partial(generate, config, params, prompts, max_new_tokens=9)
    expected = run()
    with jax.enable_x64(True):
        assert run() == run(draft=drafts["lookup"]) == expected
        assert generate_many(config, params, prompts, max_new_tokens=9, batch_size=2) == expected


@pytest.mark.parametrize(("kind", "options", "stop"), [("lookup", {}, 24), ("half", LIKELY, 5)])
def test_so_it_does_in_a_sliding_context_and_with_stop_ids(config, params, prompts, drafts, kind, options, stop):
    long = [list(range(90)), list(range(32)), *prompts[:2]]  # longer than the context, just as long, and shorter
    options = {"max_new_tokens": 40, "overflow": "slide", "eos_token_id": (2, 3, stop), "seed": 2, **options}
    expected = generate(config, params, long, **options)
    assert generate(config, params, long, **options, draft=drafts[kind]) == expected
    assert len(set(map(len, expected))) > 1 and max(map(len, expected)) == 40, "a row must end before the others"


@pytest.mark.parametrize("kind", ["lookup", "half"])
def test_a_context_can_be_filled_to_its_last_position(config, params, drafts, kind):
    run = partial(generate, config, params, [[7] * 4], max_new_tokens=28)
    assert run(draft=drafts[kind]) == run()


@pytest.mark.parametrize(("options", "rows"), [({}, 1), (SAMPLED, 4)], ids=["greedy", "sampled"])
def test_of_a_draft_that_is_always_right_every_token_is_kept(config, params, prompts, drafts, options, rows):
    steps = stream(config, params, prompts[:rows], max_new_tokens=16, **options, draft=drafts["itself"])
    assert list(map(list, zip(*steps, strict=True))) == generate(
        config, params, prompts[:rows], max_new_tokens=16, **options
    )
    assert steps.passes == 1 + 3  # one token of the prompt, then 5 a pass


def test_what_is_repeated_is_read_in_few_passes(config, params):
    # A model without weights repeats its first token.
    constant = jax.tree.map(jnp.zeros_like, params)
    steps = stream(config, constant, [[5, 0, 0]], max_new_tokens=26, draft=PromptLookup(tokens=4, ngram=2))
    assert [token for [token] in steps] == [0] * 26
    assert steps.passes == 1 + 5


def test_stream_yields_what_generate_returns_and_ends_when_all_rows_have(config, params, prompts, drafts):
    free = generate(config, params, prompts, max_new_tokens=16)
    options = {"max_new_tokens": 16, "eos_token_id": tuple(row[5] for row in free), "draft": drafts["itself"]}
    steps = list(stream(config, params, prompts, **options))
    rows = [[token for token in row if token is not None] for row in zip(*steps, strict=True)]
    assert rows == generate(config, params, prompts, **options)
    assert len(steps) == max(map(len, rows)) < 16


@pytest.mark.parametrize("kind", ["lookup", "half"])
def test_all_passes_are_one_program(config, params, drafts, kind):
    draft, before = dataclasses.replace(drafts[kind], tokens=2), speculate._cache_size()
    steps = stream(config, params, [[3]], max_new_tokens=12, draft=draft)
    assert len(list(steps)) == 12 and steps.passes > 2
    assert speculate._cache_size() == before + 1


def test_the_latest_earlier_ngram_is_what_is_looked_for():
    tokens = jnp.asarray([[9, 1, 2, 3, 1, 2, 5, 1, 2, 0, 0, 0], [1, 2, 0, 0, 7, 7, 8, 1, 2, 0, 0, 0]])
    start = jnp.asarray([0, 4])  # the other row's earlier 1, 2 are padding
    cache = KVCache((), (), jnp.asarray(8), start)
    progress = DecodeState(tokens, start < 0, jnp.asarray(0), jax.random.split(jax.random.key(0), 2), jnp.zeros(0, int))
    lookup = PromptLookup(tokens=3, ngram=2)
    assert lookup.ready(cache, progress).tolist() == [True, False]
    proposed, _ = lookup.propose(Sampling(), jnp.float32, None, cache, progress)
    assert proposed[0].tolist() == [5, 1, 2]
    more, _ = PromptLookup(tokens=7, ngram=2).propose(Sampling(), jnp.float32, None, cache, progress)
    assert more[0].tolist() == [5, 1, 2, 5, 1, 2, 5], "past its end the text goes round"


@pytest.mark.parametrize("wrong", [0, 2, 4])
def test_guesses_are_kept_up_to_the_first_that_is_wrong_in_a_live_row(config, params, prompts, wrong):
    free = np.asarray(generate(config, params, prompts, max_new_tokens=8))
    start = jnp.asarray([16 - len(prompt) for prompt in prompts])
    tokens = np.zeros((4, 32), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, start[row] : 16] = prompt
    keys = jax.random.split(jax.random.key(0), 4)
    model = GPT(config)
    begin = DecodeState(jnp.asarray(tokens), start < 0, jnp.asarray(0), keys, jnp.zeros(0, jnp.int32))
    cache, begin = prefill(model, Sampling(), params, begin, start, width=16)
    guesses = free[:, 1:5].copy()
    guesses[1, wrong:] += 1
    guesses[3, 1:] += 1
    begin = dataclasses.replace(begin, ended=jnp.arange(4) == 3)
    check = jax.jit(verify, static_argnums=(0, 1))
    cache, progress = check(model, Sampling(), params, cache, begin, jnp.asarray(guesses % 97))
    assert (int(cache.length), int(progress.count)) == (16 + wrong + 1, 1 + wrong + 1)
    assert (progress.tokens[:3, 16 : 16 + wrong + 2] == free[:3, : wrong + 2]).all()


@pytest.mark.parametrize(
    ("change", "tokens", "options", "message"),
    [
        ({"vocab_size": 98}, 4, {}, "the draft's vocabulary has 98 ids, and the model's 97; they must be the same"),
        ({"vocab_size": 90}, 4, {"vocab_size": 91}, "the draft's vocabulary has 90 ids, and the model's 97"),
        ({"n_positions": 15}, 4, {}, "the draft's context is 15; it must be 16 or more, for the text and 4 guessed"),
        ({"n_positions": 31}, 4, {"max_new_tokens": 30}, "the draft's context is 31; it must be 32 or more"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(config, change, tokens, options, message):
    draft = DraftModel(dataclasses.replace(config, **change), None, tokens)
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(config, None, [[1, 2]], draft=draft, **{"max_new_tokens": 10, **options})


def test_padding_of_the_vocabulary_may_differ(config, params, prompts):
    run = partial(generate, config, params, prompts[:1], max_new_tokens=16)
    smaller = dataclasses.replace(config, vocab_size=92, n_positions=33)
    draft = DraftModel(smaller, GPT(smaller).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"])
    assert run(vocab_size=90, draft=draft) == run(vocab_size=90)


def test_no_guess_is_no_draft(config):
    for make in (PromptLookup, partial(DraftModel, config, None)):
        with pytest.raises(UsageError, match="draft tokens is 0; it must be a whole number from 1 up"):
            make(tokens=0)


@pytest.mark.parametrize("kind", ["lookup", "half"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.usefixtures("unchecked_types")  # what `lower` keeps of its arguments are no arrays
def test_a_pass_never_copies_the_cache(config, params, drafts, batch, kind):
    size = 64
    rows = jnp.zeros(batch, jnp.int32)
    cache = KVCache.empty(config, rows, size, jnp.float32, new=False)
    state = None
    if kind != "lookup":
        state = KVCache.empty(drafts[kind].config, rows, size, jnp.float32, new=False)
    keys = jax.random.split(jax.random.key(0), batch)
    progress = DecodeState(jnp.zeros((batch, size), jnp.int32), rows > 0, jnp.asarray(0), keys, jnp.zeros(0, jnp.int32))
    arguments = (GPT(config), Sampling(), params, drafts[kind], cache, state, progress, jnp.asarray(9))
    program = speculate.lower(*arguments).compile().as_text()
    buffer = rf"f32\[[0-9,]*{size},{config.head_dim}\]"
    assert re.findall(rf"{buffer}\S* (fusion|dynamic-update-slice)\(", program)
    assert not re.findall(rf"{buffer}\S* copy\(", program)
