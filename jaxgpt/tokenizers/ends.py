"""The ids that a tokenizer puts before and behind every text, as Hugging Face's files say.

Beside a `tokenizer.json` its post-processor says it, and `add_bos_token` and `add_eos_token` say nothing; without one
they do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON, typed

_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Ends:
    """Ids before and behind a text."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, Any], bos: int | None, eos: int | None, read: ReadJSON) -> Ends:
        """Read a folder's.

        Args:
            directory: the folder.
            config: its `tokenizer_config.json`.
            bos, eos: ids of the tokens that begin and end a text; where there is none, none is put there.
            read: reads its JSON files.

        Raises:
            UsageError: the post-processor is of another kind.
        """
        if (path := directory / _FILE).exists():
            return _of_processor(read(path).get("post_processor"), path)
        path = directory / "tokenizer_config.json"
        begins, ends = (typed(config.get(f"add_{role}_token") or False, bool, role, path) for role in ("bos", "eos"))
        return cls((bos,) if begins and bos is not None else (), (eos,) if ends and eos is not None else ())

    def processor(self, texts: Mapping[int, str]) -> dict[str, Any]:
        """Return the post-processor of a `tokenizer.json`, given the texts of ids."""
        special = {texts[i]: {"id": texts[i], "ids": [i], "tokens": [texts[i]]} for i in (*self.begin, *self.end)}
        begin, end = ([{"SpecialToken": {"id": texts[i], "type_id": 0}} for i in ids] for ids in (self.begin, self.end))
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        single = [*begin, first, *end]
        pair = [*single, *begin, second, *end]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def write_tokenizer_json(
    directory: Path, vocab: Mapping[str, int], merges: list[tuple[str, str]], added: list[dict[str, Any]], ends: Any
) -> None:
    """Write a `tokenizer.json` of GPT-2's kind with what `vocab.json` and `merges.txt` lack: a post-processor."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": ends,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": [list(merge) for merge in merges],
        },
    }
    (directory / _FILE).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")


def _of_processor(processor: Any, path: Path) -> Ends:
    try:
        match processor:
            case None | {"type": "ByteLevel"}:
                return Ends()
            case {"type": "Sequence", "processors": list(parts)}:
                found = [ends for part in parts if (ends := _of_processor(part, path)) != Ends()]
                if len(found) <= 1:
                    return found[0] if found else Ends()
            case {"type": "TemplateProcessing", "single": list(single), "special_tokens": dict(special)}:
                names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in single]
                if names.count(None) == 1 and single[names.index(None)]["Sequence"]["id"] == "A":
                    ids = [special[name]["ids"] if name is not None else None for name in names]
                    at = names.index(None)
                    return Ends(_flat(ids[:at]), _flat(ids[at + 1 :]))
            case {"type": "RobertaProcessing" | "BertProcessing", "cls": [str(), int(cls)], "sep": [str(), int(sep)]}:
                return Ends((cls,), (sep,))
    except (KeyError, TypeError):
        pass
    raise UsageError(f"{path}: post_processor {str(processor)[:120]}: must put special tokens around one text, or none")


def _flat(lists: list[Any]) -> tuple[int, ...]:
    ids = tuple(i for one in lists for i in one)
    if not all(type(i) is int for i in ids):
        raise TypeError
    return ids
