"""Roles of tokens: which begins a text, ends it, pads it and so on, as a folder of Hugging Face's files says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON

END_OF_TEXT = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Roles of GPT-2's one special token, and the tokenizers in which it has them where a config is silent.
GPT2_ROLES = ("bos_token", "eos_token", "unk_token")
_GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
_CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")


def read_config(directory: Path, read: ReadJSON) -> dict[str, Any]:
    """Return `tokenizer_config.json` over `special_tokens_map.json`.

    Raises:
        UsageError: it asks to run code that comes with the folder.
    """
    config: dict[str, Any] = {}
    for file in _CONFIG_FILES:
        if (path := directory / file).exists():
            config |= read(path)
    if "auto_map" in config:
        raise UsageError(
            f"{directory / _CONFIG_FILES[1]}: auto_map asks to run code that comes with the folder, which is never done"
        )
    return config


def read_roles(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text of each role's token as a config gives it; None where it gives none."""
    silent = GPT2_ROLES if config.get("tokenizer_class") in _GPT2_CLASSES else ("eos_token",)
    return {role: content(config.get(role, END_OF_TEXT if role in silent else None)) for role in ROLES}


def special_texts(directory: Path, read: ReadJSON) -> set[str]:
    """Return the texts that a folder's files give a role, or list as special."""
    configs = [read(path) for file in _CONFIG_FILES if (path := directory / file).exists()]
    together = {key: value for config in configs for key, value in config.items()}
    values = [*read_roles(together).values(), *(content(config.get(role)) for config in configs for role in ROLES)]
    for more in (config.get(key) for config in configs for key in _MORE_SPECIAL):
        values += map(content, more if isinstance(more, list) else more.values() if isinstance(more, dict) else [])
    return {text for text in values if isinstance(text, str)}


def content(value: Any) -> Any:
    """Return the text of a token, which files give by itself or with how it is found."""
    return value.get("content") if isinstance(value, dict) else value
