import gzip
import json
import math

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from jaxgpt.data.tokens.token_writer import write_token_file
from jaxgpt.errors import UsageError
from jaxgpt.evaluate import Document, Scorer, measure_texts, read_documents, windows
from jaxgpt.evaluate.texts import byte_sizes
from jaxgpt.hf.convert import save_pretrained
from jaxgpt.mesh import make_mesh
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.quantized import quantize
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind. « Ça va ? » " * 3
BPE = BPETokenizer.train([TEXT], 280)
CONFIG = GPTConfig(BPE.vocab_size, 16, 16, 2, 2)


@pytest.fixture(scope="module")
def scorer(draw) -> Scorer:
    return Scorer(CONFIG, draw(CONFIG), BPE, batch_size=4, mesh=make_mesh())


@pytest.fixture(scope="module")
def theirs(draw, tmp_path_factory) -> GPT2LMHeadModel:
    folder = tmp_path_factory.mktemp("hf")
    save_pretrained(folder, CONFIG, draw(CONFIG))
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def recipe(model: GPT2LMHeadModel, ids: list[int], stride: int) -> float:
    """The loop of Hugging Face's documentation on perplexity of fixed-length models: the mean loss."""
    encodings, before, nats, count = torch.tensor([ids]), 0, 0.0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + CONFIG.n_positions, len(ids))
        inputs, targets = encodings[:, begin:end], encodings[:, begin:end].clone()
        targets[:, : before - end] = -100
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss.item()
        valid = (targets[0, 1:] != -100).sum().item()
        nats, count, before = nats + loss * valid, count + valid, end
        if end == len(ids):
            break
    return nats / count


@pytest.mark.parametrize("stride", [1, 5, 15])
def test_a_stride_gives_the_figure_of_hugging_faces_recipe(scorer, theirs, stride):
    ids = BPE.encode(TEXT)
    score = measure_texts(scorer, [Document(np.array(ids), 1, None)], stride=stride)
    assert score.tokens == len(ids) - 1
    assert score.loss == pytest.approx(recipe(theirs, ids, stride), abs=1e-5)


@pytest.mark.parametrize("context", [7, 16])
@pytest.mark.parametrize("stride", [None, 1, 3])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 18, 33, 50])
def test_windows_score_each_token_once_and_in_order(context, stride, first, length):
    rows = list(windows(np.arange(length), context=context, stride=stride, first=first))
    assert [i for row in rows for i in row.ids[row.first :].tolist()] == list(range(first, length))
    assert all(len(row.ids) <= context + 1 and row.first >= 1 for row in rows)
    if stride is not None:  # what the stride promises
        assert all(row.first >= context - stride for row in rows[1:])


def test_texts_are_scored_alone_and_ragged_batches_change_nothing(scorer, theirs):
    texts = [BPE.encode(TEXT[:size]) for size in (90, 3, 40, 1, 17, 60, 25)]
    score = measure_texts(scorer, [Document(np.array(ids), 1, None) for ids in texts])
    nats, tokens = 0.0, 0
    for ids in texts:
        for row in windows(np.array(ids), context=16):
            with torch.no_grad():
                log_probs = theirs(torch.from_numpy(row.ids[None, :-1])).logits.log_softmax(-1)[0]
            nats -= log_probs[range(len(row.ids) - 1), row.ids[1:]].sum().item()
            tokens += len(row.ids) - 1
    assert (score.tokens, score.texts, score.unscored) == (tokens, 7, sum(len(ids) == 1 for ids in texts))
    assert score.nats == pytest.approx(nats, rel=1e-5)


def test_bytes_are_the_texts_own_and_special_tokens_have_none(scorer, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    [document] = read_documents(str(tmp_path / "text.txt"), BPE)
    first = len(BPE.decode_bytes(document.ids[:1]))
    score = measure_texts(scorer, [document])
    assert score.bytes == len(TEXT.encode()) - first and score.words == len(TEXT.split())
    [prefixed] = read_documents(str(tmp_path / "text.txt"), BPE, prefix=True)
    whole = measure_texts(scorer, [prefixed])
    assert whole.bytes == len(TEXT.encode()) and whole.tokens == len(document.ids)
    found = whole.metrics()
    assert found["bits_per_byte"] == pytest.approx(whole.nats / math.log(2) / len(TEXT.encode()))
    assert found["tokens_per_byte"] == pytest.approx(len(document.ids) / len(TEXT.encode()))
    assert found["word_perplexity"] == pytest.approx(math.exp(whole.nats / len(TEXT.split())), rel=1e-9)
    assert byte_sizes(BPE)[BPE.eos_token_id] == 0
    assert byte_sizes(CharTokenizer("aé☃")).tolist() == [1, 2, 3]


def test_one_text_gives_one_figure_from_every_kind_of_file(scorer, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    (tmp_path / "other.json").write_text(json.dumps([{"content": TEXT}]))
    write_token_file(tmp_path / "val.bin", [np.array(BPE.encode(TEXT))], BPE)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.jsonl").write_text(json.dumps({"text": "not this"}) + "\n")
    (tmp_path / "splits" / "valid.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    pq.write_table(pa.table({"content": [TEXT]}), tmp_path / "rows.parquet")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": TEXT}) + "\n")
    sources = [("text.txt", None), ("text.jsonl", None), ("other.json", "content"), ("val.bin", None)]
    sources += [("splits", None), ("rows.parquet", "content"), ("more.jsonl.gz", None)]
    found = [read_documents(str(tmp_path / name), BPE, text_column=column) for name, column in sources]
    scores = [measure_texts(scorer, documents) for documents in found]
    assert len({(score.nats, score.tokens, score.bytes) for score in scores}) == 1


def test_wikitext_by_name_is_the_text_of_the_published_recipe(scorer, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = ["", f" = {TEXT[:20]} = \n", "", f" {TEXT} \n"]
    folder = tmp_path / "downloads" / "wikitext103" / "wikitext-103-raw-v1"
    folder.mkdir(parents=True)
    for split, rows in (("train", ["not this"]), ("validation", ["nor this"]), ("test", lines)):
        pq.write_table(pa.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    found = [read_documents(name, BPE, cache_dir=str(tmp_path)) for name in ("wikitext103", str(tmp_path / "text.txt"))]
    scores = [measure_texts(scorer, documents, stride=7) for documents in found]
    assert scores[0] == scores[1] and scores[0].texts == 1


@pytest.mark.parametrize("kind", ["int8", "int4", "w8a8"])
def test_quantized_weights_give_nearly_the_same(scorer, draw, kind):
    documents = [Document(np.array(BPE.encode(TEXT)), 1, None)]
    rounded = Scorer(CONFIG, quantize(draw(CONFIG), kind), BPE, batch_size=4)
    difference = abs(measure_texts(rounded, documents).loss - measure_texts(scorer, documents).loss)
    assert 0 < difference < {"int8": 0.05, "int4": 0.8, "w8a8": 0.1}[kind]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n{"content": "y"}\n',
            "a.jsonl:2: no column 'text'; text_column must be one",
        ),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl:1: 'text' is 3; it must be a text"),
        ("a.txt", "a\0b", "NUL at byte 1"),
        ("a.bin", "odd", "no whole number of uint16 ids"),
    ],
    ids=["field", "type", "nul", "bin"],
)
def test_a_file_of_the_wrong_shape_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        list(read_documents(str(tmp_path / name), BPE))


def test_what_cannot_be_measured_is_refused(scorer, tmp_path):
    documents = [Document(np.array([1, 2, 3]), 1, None)]
    with pytest.raises(UsageError, match="block_size 17: the model's context is 16"):
        measure_texts(scorer, documents, context=17)
    with pytest.raises(UsageError, match="stride 20: it must be from 1 to 16"):
        measure_texts(scorer, documents, stride=20)
    with pytest.raises(UsageError, match="none of the 2 texts has a token to score"):
        measure_texts(scorer, [Document(np.array([1]), 1, None)] * 2)
    with pytest.raises(UsageError, match="dataset 'playz': no such file or folder, nor one of plays"):
        list(read_documents("playz", BPE))
    write_token_file(tmp_path / "a.bin", [np.array([1, 2])], CharTokenizer("abc"))
    with pytest.raises(UsageError, match="made by tokenizer 'char', another one than the model's"):
        list(read_documents(str(tmp_path / "a.bin"), BPE))
    (tmp_path / "a.txt").write_text("abcd")
    with pytest.raises(UsageError, match="a.txt: character 'd'"):
        list(read_documents(str(tmp_path / "a.txt"), CharTokenizer("abc")))
    with pytest.raises(UsageError, match="--prefix: this char tokenizer has no end-of-text token"):
        list(read_documents(str(tmp_path / "a.txt"), CharTokenizer("abc"), prefix=True))
