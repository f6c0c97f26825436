"""All tokenizers keep one contract; ids equal tiktoken's and transformers'; folders go round."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.errors import UsageError
from jaxgpt.files import read_json
from jaxgpt.tokenizers.bpe import BPE, PATTERN
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

PLAYS = Path(__file__).parents[2] / "jaxgpt/data/plays"
SHARED = Path(__file__).parents[3] / "shared/data"
TEXT = (PLAYS / "othello.txt").read_text()
MIXED = TEXT[:2000] + "  \n\n é漢字🙂 it's <|endoftext|> 1234 "

# Characters that this Python's Unicode tables know: of newer letters, two libraries may think differently.
known = st.characters(exclude_categories=("Cs", "Cn"))
unicode_text = st.text(known | st.sampled_from(" \n\t'sdltrvem1é漢\u00a0\u3000"))


@pytest.fixture(scope="module")
def gpt2() -> BPETokenizer:
    return BPETokenizer.load(PLAYS.parents[1] / "tokenizers/gpt2", name="gpt2")


@pytest.fixture(scope="module")
def plain(gpt2: BPETokenizer) -> BPE:
    return BPE(gpt2.merges, gpt2.vocab, gpt2.special_tokens)


@pytest.fixture(scope="module")
def reference(gpt2: BPETokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=gpt2.vocab, special_tokens=gpt2.special_tokens)


@given(text=unicode_text)
def test_gpt2_ids_equal_tiktoken(gpt2: BPETokenizer, reference: tiktoken.Encoding, text: str):
    ids = gpt2.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert gpt2.decode(ids) == text
    assert gpt2.encode(f"{text}<|endoftext|>", allow_special=True) == [*ids, gpt2.eos_token_id]


def test_gpt2_is_gpt2():
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.name, gpt2.vocab_size, gpt2.eos_token_id) == ("gpt2", 50257, 50256)
    assert gpt2.encode("I enjoy walking with my cute dog") == [40, 2883, 6155, 351, 616, 13779, 3290]
    assert 50256 not in gpt2.encode("<|endoftext|>")


def test_gpt2_ids_are_those_of_openai(gpt2: BPETokenizer, tmp_path: Path):
    encoder = SHARED / "gpt2/encoder.json"
    if not encoder.exists():
        pytest.skip("needs OpenAI's encoder.json")
    gpt2.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads(encoder.read_text())


def long_texts() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    sources = [path.read_text(encoding="utf-8") for path in sorted(library.glob("*.py"))[:30]]
    shakespeare = SHARED / "tinyshakespeare.txt"
    return [TEXT, "\n".join(sources), "é 漢字 🙂 " * 3000, *([shakespeare.read_text()] if shakespeare.exists() else [])]


def test_long_texts_have_the_same_ids_by_either_path(gpt2: BPETokenizer, plain: BPE):
    for text in long_texts():
        assert gpt2.encode(text) == plain.encode(text)


@pytest.mark.parametrize("run", ["a" * 1_000_000, " " * 1_100_000, " \n" * 600_000 + "end"])
def test_runs_that_overflow_tiktoken_are_encoded(gpt2: BPETokenizer, run: str):
    assert gpt2.decode(gpt2.encode(run)) == run


@pytest.mark.parametrize("order", ["as trained", "reversed"])
def test_tiktoken_is_left_out_where_it_would_differ(gpt2: BPETokenizer, order: str):
    trained = BPETokenizer.train([TEXT], 400)
    merges = trained.merges if order == "as trained" else trained.merges[::-1]
    tokenizer = BPETokenizer(merges, trained.vocab, trained.special_tokens)
    assert tokenizer.encode(TEXT) == BPE(merges, trained.vocab, trained.special_tokens).encode(TEXT)


def tokenizers_of_each_kind() -> list[Tokenizer]:
    bpe = BPETokenizer.train([TEXT], 500)
    other_specials = BPETokenizer.train([TEXT], 400, special_tokens=("<|pad|>", "<|endoftext|>"))
    no_specials = BPETokenizer.train([TEXT], 300, special_tokens=())
    return [CharTokenizer(MIXED), load_tokenizer("gpt2"), bpe, other_specials, no_specials]


@pytest.mark.parametrize("tokenizer", tokenizers_of_each_kind(), ids=lambda t: f"{t.name}-{t.vocab_size}")
def test_saved_and_loaded_is_equal(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "a folder 漢")
    loaded = load_tokenizer(tmp_path / "a folder 漢")
    assert loaded.encode(MIXED) == tokenizer.encode(MIXED)
    assert loaded.encode(MIXED, allow_special=True) == tokenizer.encode(MIXED, allow_special=True)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.eos_token_id) == (tokenizer.vocab_size, tokenizer.eos_token_id)


@pytest.mark.parametrize("tokenizer", tokenizers_of_each_kind()[1:], ids=lambda t: f"{t.name}-{t.vocab_size}")
def test_transformers_and_we_open_each_others_folders(tokenizer: Tokenizer, tmp_path: Path):
    ids = tokenizer.encode(MIXED, allow_special=True)
    tokenizer.save(tmp_path / "ours")
    (tmp_path / "ours/config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (len(theirs), theirs.eos_token_id) == (tokenizer.vocab_size, tokenizer.eos_token_id)
    assert theirs.encode(MIXED) == ids
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs/vocab.json").exists()  # it has tokenizer.json only
    back = load_tokenizer(tmp_path / "theirs")
    assert back.encode(MIXED, allow_special=True) == ids
    assert (back.fingerprint, back.eos_token_id) == (tokenizer.fingerprint, tokenizer.eos_token_id)


def test_unknown_names_are_answered_with_valid_ones(tmp_path: Path):
    with pytest.raises(UsageError, match="'gtp2'.*did you mean 'gpt2'"):
        load_tokenizer("gtp2")
    with pytest.raises(UsageError, match="no tokenizer here"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x--y.Z", None]}}, "auto_map asks to run code"),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "tokenizer_class 'RobertaTokenizer'"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, "eos_token '</s>' is no special token"),
        ("tokenizer_config.json", {"eos_token": ["</s>"]}, "eos_token ['</s>'] is no special token"),
        ("added_tokens.json", {"<|pad|>": 10**9}, "id of '<|pad|>' is 1000000000"),
        ("added_tokens.json", {"<|pad|>": 7}, "id 7 is given twice"),
        ("added_tokens.json", {"<|endoftext|>": 300}, "'<|endoftext|>' has the ids 269 and 300"),
        ("added_tokens.json", {"": 300}, "added_tokens.json: id 300 is that of a token without text"),
        ("added_tokens.json", {"q": 300}, "'q' has id 80, and as an added token 300"),
        ("added_tokens.json", {"é": 165}, "added token 'é' is the spelling of a piece that is another text"),
        ("tokenizer_config.json", {"tokenizer_class": []}, "tokenizer_class [] is not supported"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "id of 'x' is '999"),
        ("tokenizer_config.json", {"chat_template": "a\ud800"}, """'"a\\ud800"' has a lone surrogate"""),
        ("special_tokens_map.json", {"\udfff": [{"eos_token": "x"}]}, """'"\\udfff"' has a lone surrogate"""),
        ("chars.json", {"chars": "a\ud83d"}, """'"a\\ud83d"' has a lone surrogate"""),
        ("chars.json", {"chars": ["a"]}, "'chars' must be a string"),
        ("chars.json", {"chars": "aa"}, "'chars' must be a string of distinct"),
    ],
)
def test_folders_that_cannot_be_honoured_are_refused(tmp_path: Path, file: str, contents: object, message: str):
    BPETokenizer.train([TEXT], 270).save(tmp_path)
    (tmp_path / file).write_text(json.dumps(contents))
    with pytest.raises(UsageError) as caught:
        load_tokenizer(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("pre_tokenizer", "type"), "Nothing", "the tokenizers library can't open it"),
        (("model", "type"), "Unigram", "the tokenizers library can't open it"),
        (("model", "dropout"), 0.5, "dropout is set, with which a text has other ids each time"),
        (("model", "vocab"), [], "vocabulary must be of type dict"),
        (("model", "merges"), [["a"]], "merge 1"),
        (("added_tokens",), [{"content": "<|x|>", "id": "9"}], "id of '<|x|>' is '9'"),
        (("added_tokens",), [{"content": "<|x|>", "id": i} for i in (300, 301)], "'<|x|>' has the ids 300 and 301"),
        (("added_tokens",), [{"content": "\ud800", "id": 300}], "lone surrogate"),
        (("model", "vocab", ""), 300, "id 300 is that of a token without text"),
        (("model", "vocab", "x\udfff"), 300, "lone surrogate"),
    ],
)
def test_tokenizer_json_is_read_or_refused(tmp_path: Path, place: tuple[str, ...], value: object, message: str):
    trained = BPETokenizer.train([TEXT], 300)
    trained.save(tmp_path)
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    contents = json.loads(tokenizers.ByteLevelBPETokenizer(*files).to_str())
    contents["added_tokens"] = [{"content": "<|endoftext|>", "id": 299, "special": True}]
    for file in files:
        Path(file).unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint

    target = contents
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(UsageError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("special", [{}, {"special": False}])
def test_a_token_that_has_a_role_by_default_is_special(tmp_path: Path, special: dict[str, bool]):
    trained = BPETokenizer.train([TEXT], 300)
    files = [tmp_path / "made/vocab.json", tmp_path / "made/merges.txt"]
    trained.save(tmp_path / "made")
    contents = json.loads(tokenizers.ByteLevelBPETokenizer(*map(str, files)).to_str())
    contents["added_tokens"] = [{"content": "<|endoftext|>", "id": 299, **special}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == {"<|endoftext|>": 299}
    loaded.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == loaded.fingerprint


def test_text_needs_no_jax():
    code = "import sys, jaxgpt.tokenizers; jaxgpt.tokenizers.load_tokenizer('gpt2'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PLAYS.parents[2]).returncode == 0


@pytest.mark.parametrize("kind", ["bpe", "bpe.json", "other"])
def test_each_json_file_is_read_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are of megabytes, and many ask for them."""
    if kind == "bpe":
        BPETokenizer.train(["to be or not to be"], 260).save(tmp_path)
    else:
        other = tokenizers.Tokenizer(tokenizers.models.BPE())
        other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=kind == "other")
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trained = tokenizers.trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
        other.train_from_iterator(["to be or not to be"], trained)
        other.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    read: list[str] = []

    def counted(path: Path) -> dict[str, Any]:
        read.append(path.name)
        return read_json(path)

    monkeypatch.setattr("jaxgpt.tokenizers.tokenizer.read_json", counted)
    monkeypatch.setattr("jaxgpt.tokenizers.bpe.read_json", counted)
    assert load_tokenizer(tmp_path).eos_token_id is not None
    assert sorted(read) == sorted(path.name for path in tmp_path.glob("*.json"))
