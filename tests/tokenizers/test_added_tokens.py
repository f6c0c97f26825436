"""Added tokens, roles and ends of texts are transformers', before and after they are saved here; no cut divides one."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken as Theirs

from jaxgpt.chat.encoded import begun
from jaxgpt.chat.records import Message
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.encoding import cutting
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.roles import ROLES
from jaxgpt.tokenizers.tokenizer import BPETokenizer, load_tokenizer

HAMLET = (Path(__file__).parents[2] / "jaxgpt/data/plays/hamlet.txt").read_text()
# The first is a prefix of the second, "the" a piece already, and two have white space.
WORDS = ("COVID", "COVID-19", "the", "New York", " lord", "<x>", "|e", "<|user|>")
FLAGS = [
    dict(zip(("lstrip", "rstrip", "single_word", "normalized"), f, strict=True))
    for f in product((False, True), repeat=4)
]
pieces = st.sampled_from([*WORDS, " ", "  ", "\n", "a", "_", "1", "the", "<|endoftext|>", "é", "\u3000"])
texts = st.lists(pieces, max_size=12).map("".join)
Saved = Callable[..., Path]


def open_theirs(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    BPETokenizer.train([HAMLET[:50_000]], 600).save(folder)
    return folder


@pytest.fixture(scope="module")
def flagged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[BPETokenizer, BPETokenizer, object]]:
    """Tokenizers with words of every flag: as read, as read again after saving, and transformers'."""
    found = []
    for shift in range(0, 16, 3):
        folder = tmp_path_factory.mktemp("flagged")
        theirs = open_theirs(base)
        for i, word in enumerate(WORDS):
            flags = FLAGS[(shift + 5 * i) % 16]
            theirs.add_tokens([Theirs(word, special=i > 5, **flags)], special_tokens=i > 5)
        theirs.save_pretrained(folder / "theirs")
        ours = load_tokenizer(folder / "theirs")
        assert isinstance(ours, BPETokenizer)
        ours.save(folder / "ours")
        again = load_tokenizer(folder / "ours")
        assert isinstance(again, BPETokenizer) and again.fingerprint == ours.fingerprint
        found += [(ours, again, open_theirs(folder / "theirs")), (ours, again, open_theirs(folder / "ours"))]
    return found


@given(text=texts, special=st.booleans())
def test_added_tokens_are_found_as_by_transformers(flagged: list, text: str, special: bool):
    for ours, again, theirs in flagged:
        ids = theirs(text, split_special_tokens=not special)["input_ids"]
        assert ours.encode(text, allow_special=special) == again.encode(text, allow_special=special) == ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, chunk=st.integers(1, 20), size=st.integers(1, 9))
def test_no_cut_changes_what_is_found(flagged: list, monkeypatch: pytest.MonkeyPatch, text: str, chunk: int, size: int):
    monkeypatch.setattr(cutting, "_CHUNK", chunk)
    for ours, _, _ in flagged[::2]:
        parts = list(cutting.cut_between_words((text[i : i + size] for i in range(0, len(text), size)), ours.added))
        assert "".join(parts) == text and sum(map(ours.encode_part, parts), []) == ours.encode_part(text)


def test_a_long_text_is_still_cut_where_every_other_word_is_a_token(flagged: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutting, "_CHUNK", 1000)
    ours, text = flagged[0][0], HAMLET[:30_000]
    parts = list(cutting.cut_between_words(iter([text]), ours.added))
    assert len(parts) > 1 and sum(map(ours.encode, parts), []) == ours.encode(text)


def test_a_long_text_with_words_has_the_ids_of_its_parts(base: Path, tmp_path: Path):
    """Also by tiktoken, which encodes what is long."""
    theirs = open_theirs(base)
    theirs.add_tokens(["Hamlet"])
    theirs.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(HAMLET) == theirs.encode(HAMLET)


def test_an_added_word_is_explained_as_one_piece(flagged: list):
    ours = flagged[0][0]
    [step] = ours.explain("COVID")
    assert step.pieces == ("COVID",) and step.rank is None
    with pytest.raises(UsageError, match="2 words to the tokenizer"):
        ours.explain("COVIDCOVID")


def test_roles_and_settings_go_round(base: Path, tmp_path: Path):
    theirs = transformers.AutoTokenizer.from_pretrained(base, padding_side="left")
    theirs.add_special_tokens({"bos_token": "<|start|>", "pad_token": "[P]", "mask_token": Theirs("<m>", lstrip=True)})
    theirs.add_special_tokens({"additional_special_tokens": ["<t>"]})
    theirs.model_max_length = 512
    theirs.save_pretrained(tmp_path / "theirs")
    load_tokenizer(tmp_path / "theirs").save(tmp_path / "ours")
    again = open_theirs(tmp_path / "ours")
    assert {role: getattr(again, role) for role in ROLES} == {role: getattr(theirs, role) for role in ROLES}
    assert again.all_special_tokens == theirs.all_special_tokens
    assert (again.model_max_length, again.padding_side) == (512, "left")
    assert again.encode("a  <m> b<t>[P]") == theirs.encode("a  <m> b<t>[P]")


@pytest.mark.parametrize("given", [{"bos_token": "<|endoftext|>", "pad_token": None}, {"unk_token": None}], ids=str)
def test_roles_that_a_config_leaves_out_are_gpt2s(base: Path, tmp_path: Path, given: dict):
    load_tokenizer(base).save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("_token")}
    path.write_text(json.dumps(config | given))
    theirs = open_theirs(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, BPETokenizer)
    assert {role: text for role, text in ours.roles.items() if text} == theirs.special_tokens_map


PROCESSORS = {
    "bos": [("<s>",), ()],
    "eos": [(), ("</s>",)],
    "both": [("<s>",), ("</s>",)],
    "several": [("<s>", "</s>"), ("</s>", "</s>")],
}


def framed(base: Path, folder: Path, begin: tuple[str, ...], end: tuple[str, ...], wrap: str = "") -> Path:
    theirs = open_theirs(base)
    theirs.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    theirs.save_pretrained(folder)
    path = folder / "tokenizer.json"
    contents = json.loads(path.read_text())
    single = [{"SpecialToken": {"id": t, "type_id": 0}} for t in begin] + [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": t, "type_id": 0}} for t in end]
    tokens = {t: {"id": t, "ids": [theirs.convert_tokens_to_ids(t)], "tokens": [t]} for t in (*begin, *end)}
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    processor["pair"] = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    if wrap == "sequence":
        level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        processor = {"type": "Sequence", "processors": [level, processor]}
    if wrap == "roberta":
        ids = {t: theirs.convert_tokens_to_ids(t) for t in ("<s>", "</s>")}
        named = {"cls": ["<s>", ids["<s>"]], "sep": ["</s>", ids["</s>"]]}
        processor = {"type": "RobertaProcessing", **named, "trim_offsets": True, "add_prefix_space": False}
    path.write_text(json.dumps(contents | {"post_processor": processor}))
    return folder


@pytest.mark.parametrize("name", [*PROCESSORS, "sequence", "roberta"])
def test_a_post_processors_ends_are_honoured(base: Path, tmp_path: Path, name: str):
    begin, end = PROCESSORS.get(name, PROCESSORS["both"])
    folder = framed(base, tmp_path / "theirs", begin, end, wrap=name)
    ours, theirs = load_tokenizer(folder), open_theirs(folder)
    ours.save(tmp_path / "ours")
    for text in ("", "To be <s> or not", "<s>a"):
        ids = theirs.encode(text)
        assert ours.encode(text, allow_special=True) == open_theirs(tmp_path / "ours").encode(text) == ids
        assert load_tokenizer(tmp_path / "ours").encode(text, allow_special=True) == ids
        assert ours.encode_part(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
    assert list(begun("ab", ours)) == [*ours.ends.begin, *ours.encode_part("ab")]
    assert load_tokenizer(tmp_path / "ours").fingerprint == ours.fingerprint != load_tokenizer(base).fingerprint


@pytest.mark.parametrize("beside", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}], ids=str)
def test_add_bos_token_counts_as_in_transformers(base: Path, tmp_path: Path, flags: dict, beside: str):
    if beside == "vocab.json":
        load_tokenizer(base).save(tmp_path / "theirs")
    else:
        open_theirs(base).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags))
    ours, theirs = load_tokenizer(path.parent), open_theirs(path.parent)
    ours.save(tmp_path / "ours")
    assert ours.encode("to be") == theirs.encode("to be") == open_theirs(tmp_path / "ours").encode("to be")
    assert bool(ours.ends.begin) == (beside == "vocab.json")


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "Other"},
        {"type": "TemplateProcessing", "single": [], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
        {"type": "RobertaProcessing", "cls": ["<s>", 10_000], "sep": ["</s>", 10_000]},
        3,
    ],
    ids=str,
)
def test_what_cannot_be_put_around_texts_is_refused(base: Path, tmp_path: Path, processor: object):
    open_theirs(base).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "between"), [("bos", "</s><s>"), ("eos", "</s>"), ("both", "</s><s>")])
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_each_document_of_a_corpus_has_its_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, between: str, chunk: int
):
    monkeypatch.setattr(cutting, "_CHUNK", chunk)
    begin, end = PROCESSORS[name]
    ours = load_tokenizer(framed(base, tmp_path, begin, end))
    documents = ["to be or not", "that is the question", "ay"]
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    for path in (train, val):
        path.write_text("".join(f"{json.dumps({'text': document})}\n" for document in documents))
    corpus = load_corpus(train, ours, val_dataset=val, cache_dir=tmp_path, block_size=1)
    whole = "".join([*begin, between.join(documents), *end])
    assert corpus.train[:].tolist() == corpus.val[:].tolist() == ours.encode_part(whole, allow_special=True)


def test_a_template_is_given_the_tokenizers_own_tokens(base: Path, tmp_path: Path):
    theirs = open_theirs(framed(base, tmp_path, ("<s>",), ("</s>",)))
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.add_tokens([Theirs("word", lstrip=True), Theirs("<|user|>", special=True, rstrip=True)])
    theirs.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|user|>\n {% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{{ pad_token }}{{ unk_token }}{% endfor %}{{ mask_token }}"
    )
    theirs.save_pretrained(tmp_path)
    messages = [{"role": "assistant", "content": content} for content in ("Hi  word é", "a word")]
    want = open_theirs(tmp_path).apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ours = load_tokenizer(tmp_path)
    template = ChatTemplate.of(ours)
    assert template is not None
    got = template.encode(ours, [Message("assistant", m["content"]) for m in messages])
    assert list(got.ids) == want["input_ids"] and list(got.weights) == want["assistant_masks"]
