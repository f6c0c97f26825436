"""The Hugging Face hub: a model's name → the local folder of its files."""

from __future__ import annotations

import os
import re
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
