import re

import numpy as np
import pytest

from jaxgpt.decode import continuous
from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.engine import generate
from jaxgpt.errors import UsageError

SAMPLED = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.2}
LIMITS = [3, 16, 1, 0, 9, 2, 16, 5, 1, 12]


@pytest.fixture(scope="module")
def many() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(97, size=n).tolist() for n in (5, 1, 16, 8, 2, 11, 3, 7, 16, 4)]


def expected(config, params, prompts, limits, **options) -> list[list[int]]:
    """Return what `generate` gives, which gives each row what it gets alone, cut where each is to end."""
    rows = generate(config, params, prompts, max_new_tokens=max(limits), **options)
    return [row[:limit] for row, limit in zip(rows, limits, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_every_prompt_gets_what_generate_gives_it(config, params, many, options, batch_size):
    common = {"eos_token_id": (2, 3, 5, 7, 11), "seed": 3}
    rows = generate_many(config, params, many, max_new_tokens=LIMITS, batch_size=batch_size, **options, **common)
    assert rows == expected(config, params, many, LIMITS, **options, **common)
    assert any(len(row) < limit for row, limit in zip(rows, LIMITS, strict=True)), "a row must end by a stop id, too"


@pytest.mark.parametrize("spare", [2, 64])
def test_so_it_does_when_contexts_slide_and_rows_move(config, params, many, spare, monkeypatch):
    monkeypatch.setattr(continuous, "SPARE_SLOTS", spare)
    long = [*many, list(range(90)), list(range(32))]  # longer than the context, and just as long
    limits = [5 * limit for limit in LIMITS] + [40, 20]
    options = {"overflow": "slide", "seed": 1}
    rows = generate_many(config, params, long, max_new_tokens=limits, batch_size=3, temperature=1.0, **options)
    assert rows == expected(config, params, long, limits, temperature=1.0, **options)


def test_equal_prompts_draw_different_samples_and_those_that_generate_draws(config, params):
    common = {"max_new_tokens": 16, "seed": 5}
    rows = generate_many(config, params, [[1, 2, 3]] * 4, batch_size=2, temperature=1.0, **common)
    assert len(set(map(tuple, rows))) == 4
    assert rows == generate(config, params, [[1, 2, 3]] * 4, temperature=1.0, **common)


def test_rows_do_not_wait_for_the_longest(config, params, many, monkeypatch):
    lengths = []

    def counted(*arguments):
        cache, progress = decode(*arguments)
        lengths.append(int(progress.count[0] - arguments[4].count[0]))
        return cache, progress

    decode = continuous.decode
    monkeypatch.setattr(continuous, "decode", counted)
    generate_many(config, params, many[:7], max_new_tokens=[16, 4, 4, 4, 4, 4, 4], batch_size=2)
    # The first token of each comes from its prompt: while one row takes 15 steps, the other takes 3 for each prompt.
    assert sum(lengths) == 18


def test_nothing_is_a_valid_request(config, params):
    assert generate_many(config, params, [[1], [2]], max_new_tokens=0, batch_size=2) == [[], []]
    assert generate_many(config, params, [], max_new_tokens=5, batch_size=2) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], [97]], {}, "prompt 1 has the id 97; the model's are 0 to 96"),
        ([[1], []], {}, "prompt 1 is empty, and the model has no token that begins a text"),
        ([[1], [1] * 30], {}, "a prompt of 30 tokens and 3 new ones make 33, but the model's context is 32"),
        ([[1], [2]], {"max_new_tokens": [3, -1]}, "max_new_tokens is -1; it must be 0 or more"),
        ([[1], [2]], {"max_new_tokens": [3]}, "max_new_tokens has 1 numbers for 2 prompts; it must have as many"),
        ([[1]], {"batch_size": 0}, "batch_size is 0; it must be a whole number from 1 up"),
        ([[1]], {"seed": -1}, "seed is -1; it must be from 0 to 2^32 - 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(config, prompts, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        generate_many(config, None, prompts, **{"max_new_tokens": 3, "batch_size": 2, **options})
