"""Rows and what a separator divides are documents, the same however they are stored and read."""

import gzip
import json
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data.corpus import load_corpus
from jaxgpt.data.documents import separated
from jaxgpt.data.opening import open_source
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import load_tokenizer

TEXTS = [f'Él dijo “hola” {i}\nand "went"' for i in range(40)]


def lines(texts: list[str], column: str = "text") -> str:
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts))


def table(texts: list[str], delimiter: str) -> str:
    return "\n".join(
        [f"id{delimiter}text", *(f'{i}{delimiter}"{t.replace(chr(34), chr(34) * 2)}"' for i, t in enumerate(texts))]
    )


FORMS = {
    "a.jsonl": lines(TEXTS),
    "a.jsonl.gz": lines(TEXTS),
    "a.NDJSON": lines(TEXTS),
    "a.jsonlines.gz": lines(TEXTS),
    "a.json": json.dumps([{"text": text} for text in TEXTS]),
    "a.csv": table(TEXTS, ","),
    "a.csv.gz": table(TEXTS, ","),
    "a.tsv": table(TEXTS, "\t"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_is_a_document_whatever_the_file(tmp_path: Path, name: str):
    data = FORMS[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    corpus = load_corpus(tmp_path / name, "gpt2", cache_dir=tmp_path / "cache", block_size=8)
    assert "".join(corpus.tokenizer.decode(corpus.val[:])).split("<|endoftext|>") == TEXTS[::10]
    assert corpus.tokenizer.decode(corpus.train[:]).split("<|endoftext|>") == [t for t in TEXTS if t not in TEXTS[::10]]
    assert corpus.notes == (f"{tmp_path / name}: of each row the column 'text' is a document",)


def test_a_column_is_chosen_by_its_name_and_a_part_of_the_caches_key(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "abcdefgh", "body": "stuvwxyz"}) + "\n" for _ in range(20)))
    for column, want in ((None, "abcdefgh"), ("body", "stuvwxyz"), ("text", "abcdefgh")):
        corpus = load_corpus(path, "char", cache_dir=tmp_path / "cache", block_size=4, text_column=column)
        assert corpus.tokenizer.decode(corpus.val[:8]) == want
    assert len(list((tmp_path / "cache/corpora").iterdir())) == 2
    with pytest.raises(UsageError, match="a.jsonl:1: no column 'content'; .* columns: 'text', 'body'$"):
        load_corpus(path, cache_dir=tmp_path / "cache", block_size=4, text_column="content")


def test_rows_without_a_text_are_left_out_and_others_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(["", "a", "b"]) + '{"text": null}\n')
    source = open_source(path)
    assert [["".join(d) for d in source.documents(split)] for split in ("val", "train")] == [["a"], ["b"]]
    path.write_text('{"text": 7}\n')
    with pytest.raises(UsageError, match="a.jsonl:1: 'text' is 7; it must be a text"):
        list(open_source(path).documents("val"))
    path.write_text(lines(["alone"]))
    with pytest.raises(UsageError, match="1 documents in it, of which there is none to train on"):
        list(open_source(path).documents("train"))


@pytest.mark.parametrize(
    ("name", "arguments"), [("a.txt", {"text_column": "x"}), ("a.csv", {"document_separator": "x"})]
)
def test_what_has_no_meaning_for_a_file_is_refused(tmp_path: Path, name: str, arguments: dict[str, str]):
    (tmp_path / name).write_text("text\na\nb\n")
    for dataset in (tmp_path / name, "plays"):
        with pytest.raises(UsageError, match=f"{next(iter(arguments))} 'x': "):
            load_corpus(dataset, cache_dir=tmp_path / "cache", block_size=4, **arguments)


@given(parts=st.lists(st.text("ab\n|<", max_size=6), max_size=6), size=st.integers(1, 7))
def test_a_separator_divides_wherever_pieces_end(parts: list[str], size: int):
    text = "\n<|end|>\n".join(parts)
    pieces = (text[i : i + size] for i in range(0, len(text), size))
    assert ["".join(document) for document in separated(pieces, "<|end|>")] == (parts or [""])


def test_separated_documents_are_those_of_rows(tmp_path: Path):
    texts = [text.strip() for text in TEXTS]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join([*texts, ""]))
    (tmp_path / "a.jsonl").write_text(lines(texts))
    told = {"document_separator": "<|endoftext|>"}
    a = load_corpus(tmp_path / "a.txt", "gpt2", cache_dir=tmp_path / "cache", block_size=4, **told)
    b = load_corpus(tmp_path / "a.jsonl", "gpt2", cache_dir=tmp_path / "cache", block_size=4)
    assert (a.train.fingerprint, a.val.fingerprint, a.notes) == (b.train.fingerprint, b.val.fingerprint, ())


def test_special_tokens_in_texts_are_plain_unless_asked_for_and_noted(tmp_path: Path):
    path, gpt2 = tmp_path / "a.txt", load_tokenizer("gpt2")
    path.write_text(text := "Once there was a cat.\n<|endoftext|>\n" * 60)
    plain = load_corpus(path, gpt2, cache_dir=tmp_path / "cache", block_size=4)
    assert 50256 not in plain.train[:] and "60 times" in plain.notes[0] and "--document_separator" in plain.notes[0]
    asked = load_corpus(path, gpt2, cache_dir=tmp_path / "cache", block_size=4, allow_special=True)
    assert asked.notes == () and asked.train[:].tolist() == gpt2.encode(text[: int(len(text) * 0.9)], True)


def test_parquet_rows_are_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "plain_text").mkdir()
    for i in range(2):
        texts = [f"document {n}" for n in range(5 * i, 5 * i + 5)]
        parquet.write_table(pa.table({"text": texts, "id": texts}), tmp_path / f"plain_text/{i}.parquet")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    for source in (open_source("openwebtext", 0.25, cache_dir=tmp_path), open_source(tmp_path, 0.25)):
        val = ["".join(d) for d in source.documents("val")]
        assert val == ["document 0", "document 4", "document 8"]
        assert len(list(source.documents("train"))) == 7
    assert source.fingerprint() == open_source(tmp_path, 0.25).fingerprint() != open_source(tmp_path, 0.5).fingerprint()


def test_parquet_without_pyarrow_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.delitem(__import__("sys").modules, "pyarrow.parquet", raising=False)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(UsageError, match="pip install pyarrow"):
        open_source(tmp_path, 0.1)


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "list_"])
def test_texts_of_every_type_that_parquet_has_are_read_and_lists_of_them_refused(tmp_path: Path, kind: str):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = {"dictionary": (pa.int32(), pa.string()), "list_": (pa.string(),)}.get(kind, ())
    texts = [["a"], ["b"]] if kind == "list_" else ["a", "b"]
    parquet.write_table(pa.table({"text": pa.array(texts, getattr(pa, kind)(*arguments))}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    if kind == "list_":
        with pytest.raises(UsageError, match="'text' is of type list<"):
            list(source.documents("train"))
    else:
        assert [["".join(d) for d in source.documents(split)] for split in ("val", "train")] == [["a"], ["b"]]


def test_of_parquet_only_the_column_that_is_asked_for_is_read(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", text_column="body")
    assert [["".join(d) for d in source.documents(split)] for split in ("val", "train")] == [["a"], ["b"]]
    for column, message in ((None, "no column 'text'; .* columns: 'id', 'body'"), ("id", "'id' is of type int64")):
        with pytest.raises(UsageError, match=message):
            list(open_source(tmp_path / "x.parquet", text_column=column).documents("val"))
