"""The page cuts texts at added tokens, of every flag, as the library does, and shows how each word is merged."""

import json
from itertools import product

import pytest

from jaxgpt.explore import explore
from jaxgpt.model.config import GPTConfig
from jaxgpt.tokenizers import BPETokenizer, load_tokenizer
from jaxgpt.tokenizers.added_tokens import AddedToken

# The first is a prefix of the second, "the" a piece already, two have white space, and some mean more to a pattern.
WORDS = ("COVID", "COVID-19", "the", "New York", " lord", "<x>", "|e", "<|user|>", "a.b*", "[/INST]", "👩")
TEXTS = [
    "COVID-19 COVID-1 the theme bathe, the\u00e9 the_ COVID_ COVID1 (COVID)",
    "New York  New York\n\t<x>  \u3000<x> |e|e <|user|>\n hi <|user|> my lord  lordly  lord",
    "<|endoftext|>a.b* aXbb [/INST] [/INST]] 👩‍👩‍👧 👩\ud800 <|endoftext|",
    " \x1c<x>\x85<x>\u200b<x>\ufeffthe\u0301 the",
]


def with_added(shift):
    """A tokenizer with words of every flag."""
    learnt = BPETokenizer.train([" ".join(TEXTS) + "the king and the queen " * 9], 400, special_tokens=())
    flags = list(product((False, True), repeat=4))
    added = [
        AddedToken(word, learnt.vocab_size + i, i % 3 == 0, *flags[(shift + 5 * i) % 16])
        for i, word in enumerate(WORDS)
    ]
    end = AddedToken("<|endoftext|>", learnt.vocab_size + len(WORDS))
    return BPETokenizer(learnt.merges, learnt.vocab, {}, [*added, end])


def open_page(browser, tokenizer, draw, folder):
    config = GPTConfig(tokenizer.vocab_size, 16, n_embd=4, n_layer=1, n_head=1)
    file = folder / "page.html"
    file.write_text(explore(config, draw(config), tokenizer, "the king"), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []


def typed(browser, text, special):
    """Return the ids that the page shows of a text, and the last step of its merges."""
    return browser.execute_script(
        "document.getElementById('special').checked = arguments[1];"
        "const box = document.getElementById('typed'); box.value = JSON.parse(arguments[0]);"
        "box.dispatchEvent(new Event('input'));"
        "return ['typed-tokens', 'merging'].map((id) => [...document.querySelectorAll(`#${id} .token`)]"
        ".map((token) => Number(token.title.slice(3))))",
        json.dumps(text),
        special,
    )


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_added_tokens_are_found_as_by_the_library(browser, draw, tmp_path, shift):
    tokenizer = with_added(shift)
    open_page(browser, tokenizer, draw, tmp_path)
    for text, special in product(TEXTS, (False, True)):
        ids = tokenizer.encode(text, allow_special=special)
        assert typed(browser, text, special) == [ids, ids], text


def test_gpt2s_own_tokens_and_merges(browser, draw, tmp_path):
    tokenizer = load_tokenizer("gpt2")
    open_page(browser, tokenizer, draw, tmp_path)
    for text, special in product([*TEXTS, "It's 1234567 \n\n  tokens; Привет 你好", "a" * 3000], (False, True)):
        ids = tokenizer.encode(text, allow_special=special)
        assert typed(browser, text, special) == [ids, ids], text[:40]
    typed(browser, " unbelievable", False)
    for done, step in enumerate(tokenizer.explain(" unbelievable")):
        shown = browser.execute_script(
            "const s = document.getElementById('merge-step'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'));"
            "return [...document.querySelectorAll('#merging .token')].map((token) => token.textContent)",
            done,
        )
        assert [piece.replace("␣", "Ġ") for piece in shown] == list(step.pieces)
