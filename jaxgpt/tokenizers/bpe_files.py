"""The files of a byte-level BPE vocabulary: `vocab.json` + `merges.txt`, `tokenizer.json`, OpenAI's `vocab.bpe`.

All of them spell bytes as GPT-2 does, by printable characters; in memory a piece is bytes. What the files claim is
checked here, so that whatever `read_vocabulary` returns is a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, no_type_check

from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON, read_json, read_text, typed
from jaxgpt.tokenizers.added_tokens import AddedToken, check_id, read_added_tokens

Merges = list[tuple[bytes, bytes]]

# GPT-2 gives the printable bytes their own character and the first ids, and the others the characters from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES_IN_ORDER = _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTERS = [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + i) for i in range(256 - len(_PRINTABLE))]
_CHARACTER_OF = dict(zip(BYTES_IN_ORDER, _CHARACTERS, strict=True))
_BYTE_OF = dict(zip(_CHARACTERS, BYTES_IN_ORDER, strict=True))
# For `str.translate`: to the character with the byte's number, or beyond all of them where there is no byte.
_TO_LATIN_1 = dict.fromkeys(range(0x100), 0xFFFF) | {ord(c): byte for c, byte in _BYTE_OF.items()}

_TEMPLATE_FILE = "chat_template.jinja"


def printable(piece: bytes) -> str:
    """Return GPT-2's printable spelling of `piece`, in which a space is `Ġ`."""
    return "".join([_CHARACTER_OF[byte] for byte in piece])


def read_vocabulary(directory: Path, read: ReadJSON) -> tuple[Merges, dict[bytes, int] | None, list[AddedToken]]:
    """Return merges by rank, piece to id, and added tokens.

    The vocabulary is None where the file leaves ids to GPT-2's layout (`vocab.bpe`). Added tokens are those declared,
    and the entries that no merge makes, such as GPT-2's `<|endoftext|>`, which are special.

    Raises:
        UsageError: naming the file, and the line or piece, where they do not make a byte-level BPE.
    """
    vocab_path, merges_path = directory / "vocab.json", directory / "merges.txt"
    hf_path = directory / "tokenizer.json"
    added = read_added_tokens(directory, read)
    if vocab_path.exists() and merges_path.exists():
        return _check(_read_merges(merges_path), merges_path, read(vocab_path), vocab_path, added)
    if hf_path.exists():
        if (why := other_kind(contents := read(hf_path), hf_path)) is not None:
            raise UsageError(why)
        model = contents["model"]
        pairs = enumerate(typed(model.get("merges"), list, "merges", hf_path), start=1)
        merges = [_split(pair, hf_path, number) for number, pair in pairs]
        return _check(merges, hf_path, model.get("vocab"), hf_path, added)
    if (openai_path := directory / "vocab.bpe").exists():
        merges = _read_merges(openai_path)
        pieces = dict.fromkeys([*_CHARACTERS, *(a + b for _, (a, b) in merges)])
        vocab = {piece: i for i, piece in enumerate(pieces)}
        return _check(merges, openai_path, vocab, openai_path, {})[0], None, []
    raise UsageError(f"{directory}: no tokenizer here; needs vocab.json and merges.txt, or tokenizer.json")


def other_kind(contents: dict[str, Any], path: Path) -> str | None:
    """Return in what a `tokenizer.json` splits or spells text otherwise than GPT-2's; None where it does not."""
    model = typed(contents.get("model"), dict, "model", path)
    split = contents.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(split, dict) or split.get("type") != "ByteLevel":
        return f"{path}: model {model.get('type')!r} after pre_tokenizer {str(split)[:80]} is no BPE after ByteLevel"
    others = {
        "normalizer": contents.get("normalizer"),
        "add_prefix_space": split.get("add_prefix_space", True),
        "use_regex": not split.get("use_regex", True),
    } | {
        name: model.get(name)
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    }
    name = next((name for name, value in others.items() if value), None)
    return None if name is None else f"{path}: {name} is set in a way that GPT-2's has not"


def write_vocabulary(
    directory: Path,
    merges: Iterable[tuple[bytes, bytes]],
    vocab: Mapping[bytes, int],
    added_tokens: Iterable[AddedToken],
) -> None:
    """Write `vocab.json` and `merges.txt` into `directory`, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    spelled = {printable(piece): i for piece, i in vocab.items()} | {token.text: token.id for token in added_tokens}
    by_id = dict(sorted(spelled.items(), key=lambda item: item[1]))
    (directory / "vocab.json").write_text(json.dumps(by_id, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{printable(a)} {printable(b)}" for a, b in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def read_chat_template(directory: Path, read: ReadJSON = read_json) -> tuple[str, Path] | None:
    """Return the chat template that a folder has, and its file; None where it has none.

    Transformers writes `chat_template.jinja`; before version 5 it stood in `tokenizer_config.json`, alone or in a list
    of named ones.
    """
    if (path := directory / _TEMPLATE_FILE).exists():
        return read_text(path), path
    path = directory / "tokenizer_config.json"
    template = read(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):
        entries = [typed(entry, dict, "entry of chat_template", path) for entry in template]
        template = {str(entry.get("name")): entry.get("template") for entry in entries}.get("default")
    return None if template is None else (typed(template, str, "chat_template", path), path)


def write_chat_template(directory: Path, template: str) -> None:
    """Write `chat_template.jinja` into `directory`, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="\n")


def _check(
    merges: list[tuple[int, tuple[str, str]]],
    merges_path: Path,
    vocab: Any,
    vocab_path: Path,
    added: dict[str, AddedToken],
) -> tuple[Merges, dict[bytes, int], list[AddedToken]]:
    """Return what `read_vocabulary` does, from spelled pieces; `merges` come with their line numbers."""
    vocab = dict(typed(vocab, dict, "vocabulary", vocab_path))
    owner: dict[int, str] = {}
    for token, i in (vocab | {text: token.id for text, token in added.items()}).items():
        check_id(token, i, vocab_path)
        if owner.setdefault(i, token) != token:
            raise UsageError(f"{vocab_path}: id {i} is given twice, to {owner[i]!r} and {token!r}")
        if vocab.get(token, i) != i:
            raise UsageError(f"{vocab_path}: {token!r} has id {vocab[token]}, and as an added token {i}")
    for character in _CHARACTERS:
        if character not in vocab:
            raise UsageError(
                f"{vocab_path}: no byte-level vocabulary, it lacks byte {_BYTE_OF[character]} ({character!r})"
            )

    made = set(_CHARACTERS)
    seen: set[tuple[str, str]] = set()
    for line, (a, b) in merges:
        for piece in (a, b, a + b):
            if piece not in vocab:
                raise UsageError(f"{merges_path}: merge {line}, {a!r} {b!r}: {piece!r} is not in the vocabulary")
        if (a, b) in seen:
            raise UsageError(f"{merges_path}: merge {line}, {a!r} {b!r}, stands there twice")
        seen.add((a, b))
        made.add(a + b)
    for line, (a, b) in merges:
        if not {a, b} <= made:
            raise UsageError(f"{merges_path}: merge {line}, {a!r} {b!r}: a part that no merge makes")
    piece_of = {token: _to_bytes(token, vocab_path) for token in vocab if token in made}
    pairs = [(piece_of[a], piece_of[b]) for _, (a, b) in merges]
    pieces = {piece_of[token]: i for token, i in vocab.items() if token in made}
    for text in made & added.keys():
        if _to_bytes(text, vocab_path) != text.encode():
            raise UsageError(f"{vocab_path}: added token {text!r} is the spelling of a piece that is another text")
    others = [AddedToken(token, i) for token, i in vocab.items() if token not in made and token not in added]
    return pairs, pieces, [*others, *added.values()]


def _read_merges(path: Path) -> list[tuple[int, tuple[str, str]]]:
    # Not splitlines(): it also splits at characters that are no line ends to anyone else.
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    skip = 1 if lines[0].startswith("#version") else 0
    return [_split(line, path, i + 1) for i, line in enumerate(lines) if i >= skip and line]


@no_type_check  # called for each of 50,000 merges
def _split(merge: Any, path: Path, number: int) -> tuple[int, tuple[str, str]]:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p for p in pair)):
        raise UsageError(f"{path}: merge {number}, {str(merge)[:80]!r}: must be two pieces and a space between")
    return number, (pair[0], pair[1])


@no_type_check
def _to_bytes(spelled: str, path: Path) -> bytes:
    try:
        return spelled.translate(_TO_LATIN_1).encode("latin-1")
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: piece {spelled!r} has {spelled[error.start]!r}, which stands for no byte") from None
