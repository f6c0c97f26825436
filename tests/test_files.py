"""Whatever is read as a file must be one: a pipe with nobody at its other end would block for ever."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxgpt.chat.reading import read_conversations
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.cli.generate import read_prompt
from jaxgpt.cli.train import read_stage
from jaxgpt.data import load_corpus
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.errors import UsageError
from jaxgpt.files import regular, sha256
from jaxgpt.hf.convert import load_pretrained
from jaxgpt.hf.peft import load_adapters
from jaxgpt.model.config import GPTConfig
from jaxgpt.objectives.preferences import read_reference
from jaxgpt.rl.reward_function import load_reward_function
from jaxgpt.runs.folder import LOCK, lock, read_record
from jaxgpt.runs.manifest import read_manifest
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.train.metrics import read_rows


class Hang(BaseException):
    """No error that a caller could take for one of the file's."""


@pytest.fixture(autouse=True)
def hangs_are_failures() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def corpus(path: Path) -> object:
    return load_corpus(path, block_size=8, cache_dir=path.parent / "cache")


# What reads a file of this name: from its path, or from the folder that it lies in.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config of weights": ("config.json", lambda path: load_pretrained(path.parent)),
    "safetensors": ("model.safetensors", lambda path: load_pretrained(path.parent)),
    "index": ("model.safetensors.index.json", lambda path: load_pretrained(path.parent)),
    "shard": ("shard.safetensors", lambda path: load_pretrained(path.parent)),
    "pickle": ("pytorch_model.bin", lambda path: load_pretrained(path.parent, allow_pickle=True)),
    "Flax": ("flax_model.msgpack", lambda path: load_pretrained(path.parent)),
    "nanoGPT": ("ckpt.pt", lambda path: load_pretrained(path, allow_pickle=True)),
    "adapters' settings": ("adapter_config.json", lambda path: load_adapters(path.parent, GPTConfig())),
    "adapters": ("adapter_model.safetensors", lambda path: load_adapters(path.parent, GPTConfig())),
    "tokenizer.json": ("tokenizer.json", lambda path: load_tokenizer(path.parent)),
    "tokenizer_config.json": ("tokenizer_config.json", lambda path: load_tokenizer(path.parent)),
    "characters": ("chars.json", lambda path: load_tokenizer(path.parent)),
    "alphabet": ("meta.pkl", lambda path: load_tokenizer(path.parent)),
    "text": ("text.txt", corpus),
    "parquet": ("text.parquet", corpus),
    "tokens": ("train.bin", lambda path: corpus(path.parent)),
    "sidecar": ("tokens.bin.json", lambda path: TokenFile(path.with_suffix(""))),
    "records": ("records.jsonl", read_conversations),
    "list of records": ("records.json", read_conversations),
    "template": ("template.jinja", ChatTemplate.read),
    "flags": ("flags.toml", lambda path: read_stage(["--config", str(path)])),
    "prompt": ("prompt.txt", lambda path: read_prompt(f"FILE:{path}")),
    "reward function": ("reward.py", lambda path: load_reward_function(f"{path}:reward")),
    "record of a run": ("config.json", lambda path: read_record(path.parent)),
    "manifest": ("manifest.json", lambda path: read_manifest(path.parent)),
    "reference": ("reference.npz", lambda path: read_reference(path, {}, "")),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("what", READERS)
def test_a_pipe_is_refused_by_its_name_wherever_a_file_is_read(tmp_path: Path, what: str):
    name, read = READERS[what]
    for file in ("config.json", "adapter_config.json"):
        (tmp_path / file).write_text("{}" if file == "config.json" else '{"target_modules": ["c_attn"]}')
    if what == "shard":
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "shard.safetensors"}}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=name.removesuffix(".json").replace(".", r"\.")) as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


def take_lock(path: Path) -> None:
    path.rename(path.with_name(LOCK))
    with lock(path.parent):
        pass


@pytest.mark.parametrize("read", [read_rows, sha256, regular, take_lock])
def test_a_run_names_a_pipe_among_its_own_files_too(tmp_path: Path, read: Callable[[Path], object]):
    """The run turns errors of its files into one line."""
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="a pipe, a socket or a device") as refused:
        read(tmp_path / "file")
    assert refused.value.filename == str(tmp_path / (LOCK if read is take_lock else "file"))


def test_links_to_files_are_files_and_folders_are_none(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert regular(tmp_path / "link").read_text() == "text"
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "nothing")
