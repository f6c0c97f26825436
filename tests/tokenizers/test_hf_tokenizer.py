"""Tokenizers of other kinds than GPT-2's have the ids of `tokenizers` and `transformers`, and stay what they are."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.encoding import cutting
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.decode.text import TextStream
from jaxgpt.errors import UsageError
from jaxgpt.evaluate.texts import byte_sizes
from jaxgpt.explore.collect import tokenizer_data
from jaxgpt.tokenizers import HFTokenizer, StreamDecoder, load_tokenizer
from jaxgpt.tokenizers.tokenizer import count_ids

HAMLET = (Path(__file__).parents[2] / "jaxgpt/data/plays/hamlet.txt").read_text()[:60_000]
NASTY = (
    "", " ", "  a\n\n b\t", "The king's  lords, don't! 12345", "École naïve Ångström ﬁ", "漢字かな 🙂", "e\u0301",
    "\u200b\u3000x\u00a0", "\U0001f469\u200d\U0001f467", "x<eos>y <eos>", "<pad> COVID-19COVID",
    "[UNK] ##a ▁b Ġc <0x0A>", "\0\x1b[1m", "a" * 300, "\ud800z\udfff",
)  # fmt: skip
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["<pad>", "[UNK]", "[CLS]", "<eos>"]
    tokenizer.train_from_iterator([HAMLET], trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("<eos>", 3), ("[CLS]", 2))
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(HAMLET.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def byte_level(split: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([HAMLET], trainer)
    return tokenizer


def llama_3() -> tokenizers.Tokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(pre_tokenizers.Sequence([split, spelled]))


def with_prefix_space() -> tokenizers.Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def byte_fallback() -> tokenizers.Tokenizer:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<eos>", "<pad>", *fallback, "▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def word_level() -> tokenizers.Tokenizer:
    words = dict.fromkeys(["<unk>", "<eos>", "<pad>", *HAMLET.split()])
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


Pair = tuple[HFTokenizer, transformers.PreTrainedTokenizerBase, tokenizers.Tokenizer, Path]


@pytest.fixture(
    scope="module", params=[word_piece, unigram, llama_3, with_prefix_space, byte_fallback, word_level],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("folder")
    made: Callable[[], tokenizers.Tokenizer] = request.param
    made().save(str(folder / "made.json"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "made.json"), eos_token="<eos>", pad_token="<pad>"
    )
    fast.add_tokens(["COVID-19"])
    fast.save_pretrained(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = load_tokenizer(folder)
    assert isinstance(ours, HFTokenizer)
    return ours, transformers.AutoTokenizer.from_pretrained(folder), library, folder


def check_ids(opened: Pair, text: str) -> None:
    ours, theirs, library, _ = opened
    ids = ours.encode(text, allow_special=True)
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert ids == theirs.encode(clean) == library.encode(clean).ids
    assert ours.encode_part(text, allow_special=True) == library.encode(clean, add_special_tokens=False).ids
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)
    if not isinstance(library.model, models.Unigram | models.WordLevel):  # whose pieces they are
        assert ours.eos_token_id not in ours.encode_part(text)


@pytest.mark.parametrize("text", NASTY)
def test_ids_are_those_of_transformers_and_the_library(opened: Pair, text: str):
    check_ids(opened, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
def test_ids_of_any_text(opened: Pair, text: str):
    check_ids(opened, text)


def test_saved_it_is_what_it_was(opened: Pair, tmp_path: Path):
    ours, theirs, _, folder = opened
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    facts = "fingerprint", "vocab_size", "eos_token_id", "ends", "special_tokens"
    assert [getattr(again, fact) for fact in facts] == [getattr(ours, fact) for fact in facts]
    assert (tmp_path / "saved/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (ours.vocab_size, ours.eos_token_id) == (len(theirs), theirs.eos_token_id)
    assert count_ids(folder) == ours.vocab_size
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("text", ["the king, 漢字 the", "to be or not to be"])
def test_streamed_text_is_that_of_all_ids(opened: Pair, text: str):
    ours = opened[0]
    before, ids = ours.encode_part("the king"), ours.encode_part(text)
    stream = StreamDecoder(ours, after=before)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert ours.decode(before) + "".join(pieces) == ours.decode([*before, *ids])
    alone = TextStream(ours)
    assert "".join([*map(alone.push, ids), alone.flush()]) == ours.decode(ids)


def streamed(ours: HFTokenizer, before: list[int], ids: list[int]) -> str:
    stream = StreamDecoder(ours, after=before)
    return "".join([*map(stream.push, ids), stream.flush()])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(texts=st.lists(st.text(max_size=12) | st.sampled_from([*NASTY, " the king", "<eos>"]), max_size=12))
def test_any_streamed_text_is_that_of_all_ids(opened: Pair, texts: list[str]):
    ours = opened[0]
    before, ids = ours.encode_part("the king"), [i for text in texts for i in ours.encode(text, allow_special=True)]
    whole = ours.decode([*before, *ids])
    if ours.decode(before) != whole[: len(ours.decode(before))]:  # what was shown has changed
        return
    assert ours.decode(before) + streamed(ours, before, ids) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_streamed_text_of_any_ids_is_theirs_or_a_note_says_so(opened: Pair, data: st.DataObject):
    ours = opened[0]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=120))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgpt.tokenizers.stream.note", notes := Mock())
        text = streamed(ours, [], ids)
    assert text == ours.decode(ids) or notes.called


def test_an_id_takes_no_longer_than_the_first(opened: Pair, monkeypatch: pytest.MonkeyPatch):
    ours, longest = opened[0], 0
    decode = ours.decode

    def counted(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    ids = ours.encode_part(HAMLET[:4000] + "漢字かな" * 40 + HAMLET[4000:6000])
    stream = StreamDecoder(ours, after=ids[:10])
    monkeypatch.setattr(ours, "decode", counted)
    pieces = [*map(stream.push, ids[10:]), stream.flush()]
    assert decode(ids[:10]) + "".join(pieces) == decode(ids)
    assert longest < 64 < len(ids)


def test_text_that_changes_behind_what_was_shown_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"do": 0, "not": 1, "go": 2, "?": 3}, unk_token="?"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("donot", "don't")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stream = StreamDecoder(load_tokenizer(tmp_path))
    assert ["go", "do"] == [*map(stream.push, (2, 0))]
    assert "decoder" not in capfd.readouterr().err
    assert [stream.push(1), stream.flush()] == ["n't", ""]  # "don't" begins with "do"
    assert "decoder" not in capfd.readouterr().err
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("donot", "can't")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stream = StreamDecoder(load_tokenizer(tmp_path))
    assert [*map(stream.push, (0, 1)), stream.flush()] == ["do", "n't", ""]
    assert "changes text that was shown already" in capfd.readouterr().err


def test_documents_are_encoded_whole(opened: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = opened[0]
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "the king  speaks"}\n{"text": "the lord"}\n')
    monkeypatch.setattr(cutting, "_CHUNK", 5)
    val = PLAYS_FOLDER / "tempest.txt"
    ids = load_corpus(path, ours, val_dataset=val, cache_dir=tmp_path, block_size=1).train[:].tolist()
    between = [] if ours.ends.begin or ours.eos_token_id in ours.ends.end else [ours.eos_token_id]
    first, second = ours.encode("the king  speaks"), ours.encode("the lord")
    assert ids == first + between + second


def test_what_can_not_be_told_is_said(opened: Pair, capfd: pytest.CaptureFixture[str]):
    ours = opened[0]
    for asked in (lambda: ours.decode_bytes([0]), lambda: ours.explain("king"), lambda: tokenizer_data(ours)):
        with pytest.raises(UsageError, match="another kind"):
            asked()
    assert not byte_sizes(ours).any()
    with pytest.raises(UsageError, match="not in this vocabulary"):
        ours.decode([ours.vocab_size])


def test_a_special_token_that_plain_text_spells_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    unigram().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<eos>"}')
    ours = load_tokenizer(tmp_path)
    assert ours.eos_token_id not in ours.encode_part("a king")
    assert "special" not in capfd.readouterr().err
    assert ours.eos_token_id in ours.encode_part("a <eos>")
    assert "reads '<eos>' as the special token in any text" in capfd.readouterr().err


def test_without_the_package_the_extra_is_named(opened: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'jaxgpt\[tokenizers\]'") as caught:
        load_tokenizer(opened[3])
    assert str(opened[3]) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": 7}}, "can't open it"),
        ({"model": {"type": "Whatever", "vocab": {}}}, "can't open it"),
        ({"added_tokens": [{"content": "<x>", "id": 7}]}, "can't open it|has no id 7"),
        ({"post_processor": {"type": "Sequence", "processors": [{"type": "Else"}]}}, "can't open it"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, change: dict[str, object], message: str):
    contents = json.loads(word_level().to_str()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(UsageError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
