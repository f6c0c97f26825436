"""Text is read strictly, in pieces, and splits into what it was made of."""

import gzip
import io
import lzma
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.data import download, sources
from jaxgpt.data.opening import open_source
from jaxgpt.data.sources import TextFiles, read_text
from jaxgpt.errors import UsageError


def read(path: Path) -> str:
    return "".join(read_text(path, []))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\r\né漢🙂")))
def test_pieces_add_up_whatever_their_size(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_READ_BYTES", 3)
        found = read(path)
    assert found == text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\xff", "not UTF-8 at byte 3: invalid start byte"),
        (b"abc\xe6\xbc", "not UTF-8 at byte 3: unexpected end of data"),
        (b"\xef\xbb\xbfab\xffc", "not UTF-8 at byte 5"),
        (b"ab\0c", "NUL at byte 2: no text, or not in UTF-8"),
        ("utf-16".encode("utf-16"), "not UTF-8|NUL at byte 3"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
):
    monkeypatch.setattr(sources, "_READ_BYTES", 4)
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UsageError, match=f"x.txt: ({message})"):
        read(tmp_path / "x.txt")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_text_that_is_compressed_is_said_to_be(tmp_path: Path, compress):
    (tmp_path / "a.txt.gz").write_bytes(compress(b"To be" * 99))
    with pytest.raises(UsageError, match="a.txt.gz: is compressed; texts are read as they are"):
        list(read_text(tmp_path / "a.txt.gz", []))


def test_what_is_taken_out_is_said(tmp_path: Path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\nd")
    notes: list[str] = []
    assert "".join(read_text(tmp_path / "x.txt", notes)) == "a\nb\nc\nd"
    assert "byte order mark" in notes[0] and notes[1].endswith("x.txt: read 2 carriage returns as line ends")


@given(texts=st.lists(st.text("ab c\n", max_size=9), min_size=1, max_size=5), fraction=st.floats(0.01, 0.99))
def test_splits_add_up_to_the_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str], fraction: float):
    whole = "".join(texts)
    paths = []
    for i, text in enumerate(texts):
        paths.append(tmp_path_factory.getbasetemp() / f"split{i}.txt")
        paths[-1].write_text(text, newline="")
    source = TextFiles("x", paths, fraction)
    if not whole.strip():
        with pytest.raises(UsageError, match="no text in it"):
            list(source.documents("train"))
        return
    train, val = ("".join("".join(d) for d in source.documents(split)) for split in ("train", "val"))
    assert train + val == whole and len(train) == int(len(whole) * (1 - fraction))


def test_fingerprints_tell_documents_apart(tmp_path: Path):
    def fingerprint(*texts: str, fraction: float = 0.1) -> str:
        paths = [tmp_path / str(i) for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return TextFiles("x", paths, fraction).fingerprint()

    prints = [fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc"), fingerprint("abc", fraction=0.2)]
    assert len(set(prints)) == 4 and fingerprint("abc") == prints[2]


def test_downloads_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"not it"))
    with pytest.raises(UsageError, match="SHA-256 is"):
        download.download("shakespeare", tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(UsageError, match=r"raw.githubusercontent.com.*put it at .*tinyshakespeare.txt"):
        download.download("shakespeare", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match=r"'openwebtext'.*Skylion007/openwebtext cannot be downloaded .*no route"):
        download.download("openwebtext", tmp_path)


def test_a_file_put_by_hand_is_used_if_it_is_the_right_one(tmp_path: Path):
    path = tmp_path / "downloads/tinyshakespeare.txt"
    path.parent.mkdir()
    shared = Path(__file__).parents[3] / "shared/data/tinyshakespeare.txt"
    if shared.exists():
        path.write_bytes(shared.read_bytes())
        assert len("".join(next(open_source("shakespeare", cache_dir=tmp_path).documents("val")))) == 111_540
    path.write_text("wrong")
    with pytest.raises(UsageError, match="take it away to download"):
        download.download("shakespeare", tmp_path)
