"""A token file holds what was written, opens nanoGPT's, and names what is wrong with a broken one."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data.tokens import token_files
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.data.tokens.token_writer import write_token_file
from jaxgpt.errors import RunError, UsageError
from jaxgpt.tokenizers.char import CharTokenizer

ABC = CharTokenizer("abcdefgh")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a folder 漢" / "train.bin"
    path.parent.mkdir()
    write_token_file(path, iter([np.arange(8), np.array([], np.uint32), np.array([7, 0])]), ABC)
    return path


def wide_tokenizer(size: int) -> CharTokenizer:
    return CharTokenizer("".join(chr(i) for i in range(0x10000, 0x10000 + size)))


def test_what_is_written_is_read(path: Path):
    ids = TokenFile(path)
    assert len(ids) == 10 and ids[2:5].tolist() == [2, 3, 4] and ids.vocab_size == 8
    assert ids[np.array([[0, 9], [8, 1]])].tolist() == [[0, 0], [7, 1]]
    assert ids.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not list(path.parent.glob("*.tmp"))
    assert np.fromfile(path, np.uint16).tolist() == [*range(8), 7, 0]  # as nanoGPT reads it


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_ids_that_do_not_fit_are_wide(tmp_path: Path, size: int, dtype: str):
    write_token_file(tmp_path / "x.bin", iter([np.array([size - 1, 0])]), wide_tokenizer(size))
    ids = TokenFile(tmp_path / "x.bin")
    assert ids[:].tolist() == [size - 1, 0] and ids[:].dtype == dtype


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8", "<u8", ">i4", "<f4", "<f8"])
@pytest.mark.parametrize("blocks", [False, True])
def test_wider_numbers_without_a_sidecar_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, blocks: bool
):
    if blocks:
        monkeypatch.setattr(token_files, "CHECKED", 1 << 10)
        monkeypatch.setattr(token_files, "_BLOCK", 1 << 8)
    ids = np.random.default_rng(0).integers(0, 100, 5000)
    ids.astype(dtype).tofile(tmp_path / "x.bin")
    with pytest.raises(UsageError, match="x.bin: every fourth of its uint16 ids is 0, so it holds wider numbers"):
        TokenFile(tmp_path / "x.bin")
    ids.astype("uint16").tofile(tmp_path / "x.bin")
    assert TokenFile(tmp_path / "x.bin")[:].tolist() == ids.tolist()


def test_what_a_large_vocabulary_needs_is_read_without_a_sidecar_too(tmp_path: Path):
    ids = np.random.default_rng(0).integers(0, 100_000, 5000)
    ids.astype("uint32").tofile(tmp_path / "x.bin")
    assert TokenFile(tmp_path / "x.bin", vocab_size=100_000)[:].tolist() == ids.tolist()
    ids.astype("int64").tofile(tmp_path / "x.bin")
    with pytest.raises(UsageError, match="every fourth of its uint32 ids is 0"):
        TokenFile(tmp_path / "x.bin", vocab_size=100_000)


@pytest.mark.parametrize("text", ["To be, or not to be. " * 20, "Быть или не быть. " * 20, "生存还是毁灭。" * 40])
def test_other_files_without_a_sidecar_are_refused(tmp_path: Path, text: str):
    (tmp_path / "x.bin").write_text(text + " " * (len(text.encode()) % 2), encoding="utf-8")
    with pytest.raises(UsageError, match="x.bin: is a text and no file of ids|beyond the vocabulary"):
        TokenFile(tmp_path / "x.bin")
    with (tmp_path / "x.bin").open("wb") as file:
        np.save(file, np.arange(500, dtype=np.uint16))
    with pytest.raises(UsageError, match="x.bin: is NumPy's .npy"):
        TokenFile(tmp_path / "x.bin")


def test_parts_of_a_file_know_the_whole(path: Path):
    train, val = TokenFile(path).split(0.25)
    assert train[:].tolist() + val[:].tolist() == TokenFile(path)[:].tolist() and len(val) == 3
    os.utime(path, (0, 0))
    for part in (train, val):
        with pytest.raises(RunError, match="changed while in use"):
            part.check_unchanged()


def test_a_file_of_nanogpt_needs_no_sidecar(tmp_path: Path):
    np.array([50256, 0, 5], np.uint16).tofile(tmp_path / "val.bin")
    ids = TokenFile(tmp_path / "val.bin")
    assert ids.vocab_size == 50257 and ids[:].tolist() == [50256, 0, 5] and ids.sidecar is None


def test_broken_files_are_named(path: Path, tmp_path: Path):
    def message(file: Path) -> str:
        with pytest.raises(UsageError) as caught:
            TokenFile(file)
        return str(caught.value)

    bare = tmp_path / "bare.bin"
    assert "cannot be read" in message(bare)
    bare.write_bytes(b"")
    assert "0 bytes" in message(bare)
    bare.write_bytes(b"123")
    assert f"{bare}: 3 bytes is no whole number of uint16 ids" in message(bare)
    np.array([1, 2, 60000, 3], np.uint16).tofile(bare)
    assert "id 60000 at offset 2 is beyond the vocabulary of 50257" in message(bare)

    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert "18 bytes, but its sidecar says 10 ids" in message(path)
    path.write_bytes(b"\1" + whole[1:])
    assert "changed after it was written" in message(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "dtype is 'float32'; valid are"),
        ({"vocab_size": "8"}, "vocab_size is '8'; must be of type int"),
        ({"dtype": "uint32"}, "20 bytes, but its sidecar says 10 ids of uint32"),
        ({"vocab_size": 7}, "id 7 at offset 7 is beyond the vocabulary of 7"),
    ],
)
def test_sidecars_that_do_not_fit_are_refused(path: Path, changes: dict[str, object], message: str):
    sidecar = path.with_name("train.bin.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))
    with pytest.raises(UsageError) as caught:
        TokenFile(path)
    assert message in str(caught.value)


def test_large_files_are_sampled_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_files, "CHECKED", 1 << 10)
    monkeypatch.setattr(token_files, "_BLOCK", 1 << 8)
    ids = np.zeros(100_000, np.uint16)
    ids.tofile(tmp_path / "x.bin")
    before = TokenFile(tmp_path / "x.bin").fingerprint
    for place in (0, -1):
        ids[place] = 60000
        ids.tofile(tmp_path / "x.bin")
        with pytest.raises(UsageError, match="id 60000"):
            TokenFile(tmp_path / "x.bin")
        ids[place] = 1
    ids.tofile(tmp_path / "x.bin")
    assert TokenFile(tmp_path / "x.bin").fingerprint != before


def test_a_change_while_in_use_is_noticed(path: Path):
    ids = TokenFile(path)
    ids.check_unchanged()
    with path.open("r+b") as file:
        file.truncate(4)
    with pytest.raises(RunError, match="changed while in use .20 bytes at start, 4 now"):
        ids.check_unchanged()
    os.remove(path)
    with pytest.raises(RunError, match="gone while in use"):
        ids.check_unchanged()
