"""nanoGPT's `meta.pkl` is read as data: what is in it can be wrong, but never runs."""

import os
import pickle
import pickletools
from pathlib import Path

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.tokenizers import CharTokenizer, load_tokenizer, meta_pickle
from jaxgpt.tokenizers.meta_pickle import read_alphabet

ITOS = dict(enumerate("\n !ab漢🙂"))
META = {"vocab_size": len(ITOS), "itos": ITOS, "stoi": {char: i for i, char in ITOS.items()}}


class Malicious:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_alphabet_is_read(tmp_path: Path, protocol: int):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(META, protocol))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, CharTokenizer) and tokenizer.encode("ba漢") == [4, 3, 5]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("check", [True, False])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, check: bool):
    path, made = tmp_path / "meta.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps(META | {"extra": Malicious(made)}, protocol))
    if not check:  # the second line of defence, alone
        monkeypatch.setattr(meta_pickle, "_HARMLESS", {code.name for code in pickletools.opcodes})
    with pytest.raises(UsageError, match="may run code" if check else r"asks for (posix|nt)\.mkdir"):
        load_tokenizer(tmp_path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()  # so the payload was one


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pickle"),
        (b"no pickle", "not a pickle|a pickle with"),
        (pickle.dumps(META)[:-9], "not a pickle"),
        (b"\x80\x04}r\xff\xff\xff\x7f.", "a pickle with LONG_BINPUT"),
        (pickle.dumps({}), "must hold vocab_size, itos and stoi"),
        (pickle.dumps(3), "must hold vocab_size, itos and stoi"),
        (pickle.dumps(META | {"vocab_size": 8}), "contradict"),
        (pickle.dumps(META | {"stoi": {"a": 0}}), "contradict"),
        (pickle.dumps(META | {"itos": {1: "a"}}), "one character to each id"),
        (pickle.dumps(META | {"itos": {0: "ab"}}), "one character to each id"),
        (pickle.dumps({"vocab_size": 2, "itos": {0: "b", 1: "a"}, "stoi": {"b": 0, "a": 1}}), "order of code points"),
    ],
)
def test_what_is_no_alphabet_is_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(UsageError, match=f"meta.pkl: .*({message})"):
        read_alphabet(tmp_path / "meta.pkl")


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(META))
    monkeypatch.setattr(meta_pickle, "_MAX_FILE_BYTES", 10)
    with pytest.raises(UsageError, match="too large for an alphabet"):
        read_alphabet(tmp_path / "meta.pkl")
