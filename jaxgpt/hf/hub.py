"""The Hugging Face hub: a model's name → the local folder of its files; a folder → a model there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "tokenizer*",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def locate(source: str | os.PathLike[str], *, revision: str | None, allow_pickle: bool) -> Path:
    """Return the local path of a file, a folder or a model on the hub; what is local never touches the network.

    Raises:
        UsageError: it is none of these, or could not be downloaded.
    """
    if os.path.exists(source):  # False, unlike Path.exists, for a name that can't be a path
        if revision is not None:
            raise UsageError(f"revision {revision!r} is of a model on the hub, but {source} is local")
        return Path(source)
    if not isinstance(source, str) or not NAME.fullmatch(source):
        raise UsageError(f"{source}: no such file or folder")
    # An HTTP client, for those who ask for the hub.
    from huggingface_hub import snapshot_download

    others = ("pytorch_model*.bin", "pytorch_model.bin.index.json") if allow_pickle else ("flax_model*.msgpack*",)
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
        if not any(folder.glob("model*.safetensors*")):
            snapshot_download(source, revision=revision, allow_patterns=list(others))
        return folder
    except Exception as error:  # besides its own, the HTTP client's, which is not the same in all versions
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"{source} is neither a folder nor a model that could be downloaded ({reason}). Where there is a network, "
            f"run `hf download {source} --local-dir DIR`, and pass DIR here: it takes config.json, model.safetensors "
            f"and the tokenizer's vocab.json and merges.txt"
        ) from None


def make_repository(name: str, *, private: bool) -> None:
    """Make a model's repository on the hub, or make sure that the one that is there may be written to.

    The token is the environment's, as huggingface_hub finds it: HF_TOKEN, or what `hf auth login` left.

    Raises:
        UsageError: no such name, no network or no right to write; or one that is there is public, but not to be.
    """
    if not NAME.fullmatch(name) or "/" not in name:
        raise UsageError(f"hub:{name}: must be hub:OWNER/NAME")
    from huggingface_hub import HfApi

    with _at_the_hub(name):
        HfApi().create_repo(name, private=True if private else None, exist_ok=True)
        public = private and not HfApi().model_info(name).private
    if public:
        raise UsageError(f"--private: {name} is on the hub already, and public; choose another name")


def upload(folder: Path, name: str) -> str:
    """Write a folder's files to a model's repository on the hub in one commit, and return its address.

    Raises:
        UsageError: no network, or no right to write.
    """
    from huggingface_hub import HfApi

    with _at_the_hub(name):
        done = HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Written by convert_weights.py")
    return str(done.repo_url)


@contextlib.contextmanager
def _at_the_hub(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # besides its own, the HTTP client's, which is not the same in all versions
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"hub:{name}: cannot be written ({reason[:300]}); there must be a network, and a token that may write, of "
            f"`hf auth login` or HF_TOKEN. A folder can be uploaded later: `hf upload {name} DIR`"
        ) from None
