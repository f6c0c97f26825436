"""The explorer's page in a real browser: no error on any view, and what it shows is what the library computes."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files

import jax
import numpy as np
import pytest

from jaxgpt.cli.explore import main
from jaxgpt.errors import UsageError
from jaxgpt.explore import explore
from jaxgpt.explore.collect import prediction_data
from jaxgpt.explore.data import shown
from jaxgpt.explore.pictures import ABSENT
from jaxgpt.inspect import inspect
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.weights import save_params
from jaxgpt.tokenizers import BPETokenizer, CharTokenizer

HOSTILE = (
    "</script><script>document.title='got in'</script><!-- <img src=x onerror=\"document.title='got in'\"> {{data}} "
)
NASTY = [
    "strawberry  don't  WON'T\n\n\t x\u00a0y\u2003z  ",
    "a\x85b\x1cc\x1fd\ufeffe\u180ef\u200bg\u2028h\x00i",
    "Привет, мир 你好 こんにちは १२३ ½ ² 𝟘 é e\u0301 ﬁ",
    "👩‍👩‍👧 🇩🇪 \u202eabc\u202c \U0001f600\ud83d\ude00 \ud800 lone \udc00",
    HOSTILE + "<|endoftext|>",
    "",
]


class Model:
    """A tiny model, its page, and what the page should show."""

    def __init__(self, kind, draw):
        self.text = "the cat and the hat" if kind == "char" else HOSTILE + "the cat sat. \u202e\x00 é 👍"
        corpus = self.text + "abcdefghijklmnopqrstuvwxyz"
        self.tokenizer = CharTokenizer(corpus) if kind == "char" else BPETokenizer.train([corpus * 3], 320)
        labels = {"labels": ("spam", "<b>ham</b>")} if kind == "classifier" else {}
        vocab = self.tokenizer.vocab_size
        self.config = GPTConfig(vocab, 200, n_embd=16, n_layer=2, n_head=2, **labels)
        self.params = draw(self.config)

    def page(self, **more):
        return explore(self.config, self.params, self.tokenizer, self.text, name="<b>model</b>", **more)


@pytest.fixture(scope="module", params=["char", "bpe", "classifier"])
def model(request, draw):
    return Model(request.param, draw)


@pytest.fixture(scope="module")
def opened(model, browser, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(model.page(other=(model.config, model.params, model.tokenizer), other_name="<i>"), encoding="utf-8")
    browser.get(file.as_uri())
    return browser


def test_no_view_has_an_error_and_nothing_is_fetched(opened):
    assert opened.get_log("browser") == []
    assert opened.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    for width in (1200, 390):
        opened.set_window_size(width, 900)
        for button in opened.find_elements("css selector", "#architecture button, #tokens .tokens button"):
            opened.execute_script("arguments[0].click()", button)
        wide, there = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= there
    empty = opened.execute_script(
        "return [...document.querySelectorAll('.view')].filter((v) => !v.children.length).length"
    )
    assert empty == 0
    for view, said in ABSENT.items():  # as there is no run
        assert said in opened.find_element("id", view).text
    assert opened.get_log("browser") == []


def test_hostile_text_stays_text(opened):
    assert opened.title == "<b>model</b>: see inside"
    assert opened.execute_script("return document.querySelectorAll('img, h1 b, .bar b, h3 i').length") == 0
    assert opened.execute_script("return document.scripts.length") == 2


@pytest.mark.parametrize("temperature", [0.35, 1.0, 2.5])
def test_the_temperature_gives_softmax_of_logits_by_it(opened, model, temperature):
    ids = model.tokenizer.encode(model.text)
    logits = np.asarray(inspect(model.config, model.params, [ids]).logits[0, -1], np.float64)
    opened.execute_script(
        "[...document.querySelectorAll('#tokens .tokens')[0].children].at(-1).click();"
        "const t = document.getElementById('temperature'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))",
        temperature,
    )
    shown = opened.execute_script(
        "return [...document.querySelectorAll('#bars .bar')].map((b) => [b.dataset.id, b.dataset.p])"
    )
    expected = np.exp(logits / temperature - (logits / temperature).max())
    expected /= expected.sum()
    assert len(shown) == 12
    for token, p in shown:
        assert float(p) == pytest.approx(expected[int(token)], rel=5e-3)


def test_logits_far_from_zero_keep_their_digits(model):
    """GPT-2's lie near -100, where f16 would move probabilities by 3 %."""
    found = inspect(model.config, model.params, [model.tokenizer.encode(model.text)])
    expected = np.asarray(jax.nn.softmax(found.logits[0, -1]))
    far = found.replace(logits=found.logits - 100)
    packed = prediction_data(model.config, model.params, far, model.config.vocab_size)["rows"][-1]["logits"]
    kept = np.exp(np.frombuffer(base64.b64decode(packed["data"]), "<f2").astype(np.float64))
    np.testing.assert_allclose(kept / kept.sum(), expected, rtol=3e-3)


def test_the_ends_of_an_axis_are_found_among_any_number_of_points(opened):
    """A map of several checkpoints has as many as a browser does not take for arguments of a function."""
    source = files("jaxgpt.explore").joinpath("assets/base.js").read_text("utf-8")
    [extent] = re.findall("const extent = .*;", source)
    assert opened.execute_script(f"{extent} return extent(Array.from({{ length: 1e6 }}, (_, i) => i - 3))") == [
        -3,
        999_996,
    ]


def test_filters_are_the_librarys(opened, model):
    """Top-k and min-p leave what `Sampling` leaves."""
    opened.execute_script(
        "for (const [id, x] of [['temperature', 1], ['top_k', 3]]) { const s = document.getElementById(id);"
        "s.value = x; s.dispatchEvent(new Event('input')); }"
    )
    shown = opened.execute_script("return [...document.querySelectorAll('#bars .bar')].map((b) => Number(b.dataset.p))")
    assert sum(p > 0 for p in shown) == 3 and sum(shown) == pytest.approx(1)
    opened.execute_script(
        "const s = document.getElementById('top_k'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    opened.find_element("id", "sample")
    opened.execute_script("document.getElementById('sample').click()")
    assert opened.execute_script("return document.getElementById('sampled').textContent") != ""


def test_a_row_of_a_head_sums_to_one(opened):
    for place in (0, 5):
        opened.execute_script("document.querySelector('#tokens .tokens').children[arguments[0]].click()", place)
        text = opened.execute_script("return document.getElementById('attention-sum').textContent")
        assert text == "The row sums to 1.000000."


def test_a_part_is_followed_from_block_to_block(opened):
    said = opened.execute_script(
        "const find = (text) => [...document.querySelectorAll('#architecture .block button')].find("
        "(button) => button.textContent === text);"
        "find('layer norm 2').click();"
        "const select = document.querySelector('#architecture select');"
        "select.value = 1; select.dispatchEvent(new Event('change'));"
        "return [find('layer norm 2').ariaPressed, document.querySelector('#architecture .view code').textContent]"
    )
    assert said[0] == "true" and said[1].startswith("h_1/ln_2/")


def test_no_token_looks_like_nothing(browser, draw, tmp_path):
    """Spaces of all kinds, a byte order mark and controls are spelled out, with scripts and without."""
    text = "a\ufeffb\u00a0c\u3000d\x00e\u202ef \n\u00adé"
    tokenizer = CharTokenizer(text)
    config = GPTConfig(tokenizer.vocab_size, 32, n_embd=4, n_layer=1, n_head=1)
    (tmp_path / "page.html").write_text(explore(config, draw(config), tokenizer, text), encoding="utf-8")
    browser.get((tmp_path / "page.html").as_uri())
    expected = [shown(char.encode()) for char in text]
    assert expected[1::2] == ["\\u{feff}", "\\u{a0}", "\\u{3000}", "\\u{0}", "\\u{202e}", "␣", "\\u{ad}"]
    for where in ("#tokens .tokens button", "#tokens tbody td:nth-child(3)"):
        cells = f"return [...document.querySelectorAll('{where}')].map((cell) => cell.textContent)"
        assert browser.execute_script(cells) == expected


@pytest.mark.parametrize("group", ["#tokens .tokens", "#attention .heads"])
def test_a_group_is_one_stop_of_the_tab_key_and_arrow_keys_choose_in_it(opened, group):
    from selenium.webdriver.common.keys import Keys

    first = f"document.querySelector('{group}').children[0]"
    opened.execute_script(f"{first}.click(); {first}.focus()")
    for key, at in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        opened.switch_to.active_element.send_keys(key)
        for chosen in ("b.ariaPressed === 'true'", "b.tabIndex === 0", "b === document.activeElement"):
            marked = f"[...document.querySelector('{group}').children].map((b, i) => {chosen} ? i : -1)"
            assert opened.execute_script(f"return {marked}.filter((i) => i >= 0)") == [at]
    if group == "#tokens .tokens":
        says = opened.execute_script("return document.getElementById('attention-row').textContent")
        assert says.startswith("Place 1, ")


@pytest.mark.parametrize("text", NASTY, ids=["spaces", "controls", "scripts", "emoji", "markup", "nothing"])
def test_the_page_cuts_texts_as_the_library_does(opened, model, text):
    found = opened.execute_script(
        "const box = document.getElementById('typed'); box.value = JSON.parse(arguments[0]);"
        "box.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('#typed-tokens .token')].map((b) => b.title)",
        # As JSON, in which a lone surrogate passes; a text area makes \n of \r alone.
        json.dumps(text),
    )
    ids = [None if title == "not in the vocabulary" else int(title.removeprefix("id ")) for title in found]
    if isinstance(model.tokenizer, CharTokenizer):
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        known = set(model.tokenizer.chars)
        assert ids == [model.tokenizer.encode(char)[0] if char in known else None for char in clean]
    else:
        assert ids == model.tokenizer.encode(text)


class Texts(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_without_scripts_the_tokens_can_be_read(model):
    page = model.page()
    parser = Texts()
    parser.feed(page)
    assert parser.tags.count("tr") == len(model.tokenizer.encode(model.text)) + 1
    assert parser.tags.count("script") == 2 and parser.tags.count("img") == 6
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert all(f'<noscript><p class="note">{said}</p></noscript>' in page for said in ABSENT.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw):
    """A run's folder."""
    made, run = Model("char", draw), tmp_path_factory.mktemp("run")
    save_params(run, made.config, made.params)
    made.tokenizer.save(run)
    return run


def test_the_command_writes_the_page(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    main([str(folder), "--text", "the cat", "--out", str(out), "--compare", str(folder)])
    assert "open it in a browser" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", ""], "--text is empty"),
        (["--text", "t"], "1 tokens; there must be two or more"),
        (["--text", "the " * 60], "240 tokens, but the model's context is 200"),
        (["--text", "the QUEEN"], "character 'Q'"),
        (["--out", "nowhere/page.html"], "--out nowhere/page.html: can't be written"),
        (["--out", "."], "--out .: can't be written: Is a directory"),
        (["--out", "/proc/page.html"], "--out /proc/page.html: can't be written"),
        (["--checkpoint", "7"], "has no checkpoint of step 7"),
    ],
    ids=["empty", "short", "long", "unknown", "nowhere", "folder", "no place for files", "checkpoint"],
)
def test_bad_input_is_one_line(folder, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), "--text", "the cat", *arguments] if "--text" not in arguments else [str(folder), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_checkpoint_of_another_format_is_one_line(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    record = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**record, "format": 99}), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([str(other), "--text", "the cat", "--out", str(tmp_path / "page.html")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "has format 99; this version reads format" in error and error.count("\n") == 1


def test_ids_that_stand_for_no_text_have_no_names(draw):
    """Rows that pad the vocabulary, as nanoGPT's, and holes in it, though they lie nearest and are likeliest."""
    learnt = BPETokenizer.train(["the cat and the hat " * 3], 270, special_tokens=())
    hole = learnt.vocab_size
    tokenizer = BPETokenizer(learnt.merges, learnt.vocab, {"<|endoftext|>": hole + 1})
    config = GPTConfig(hole + 9, 16, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False)
    params = draw(config)
    table, head = (np.array(params[name]["embedding"]) for name in ("wte", "lm_head"))
    table[hole:] = table[tokenizer.encode("the cat")[-1]]
    head[hole:] = 9 * np.sign(np.asarray(params["ln_f"]["bias"]))
    params = {
        **params,
        "wte": {"embedding": table},
        "lm_head": {"embedding": head},
        "ln_f": {**params["ln_f"], "bias": 9 * np.sign(np.asarray(params["ln_f"]["bias"]))},
    }
    page = explore(config, params, tokenizer, "the cat")
    assert f"<code>[{hole}]</code>" in page and f"<code>[{hole + 2}]</code>" not in page
    with pytest.raises(UsageError, match=f"text has the id {hole + 2}; the model's are 0 to {hole + 1}"):
        explore(config, params, tokenizer, [1, hole + 2])


def test_a_model_that_gives_nan_is_refused(draw):
    broken = Model("char", draw)
    broken.params = {**broken.params, "ln_f": {**broken.params["ln_f"], "scale": np.full(16, np.nan, np.float32)}}
    with pytest.raises(UsageError, match="its logits are no finite numbers"):
        broken.page()


def test_another_tokenizer_is_refused(model):
    other = CharTokenizer("xyz")
    with pytest.raises(UsageError, match="its tokenizer is another"):
        model.page(other=(model.config, model.params, other), other_name="b")
