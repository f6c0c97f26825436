"""Added tokens: texts that stand for themselves beside a BPE's pieces, and where they are found in a text.

They are found as by Hugging Face's `tokenizers`: of those that begin at one place the longest, and those that are
`normalized` only in what the others leave.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, no_type_check

import regex

from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON, typed
from jaxgpt.tokenizers.roles import special_texts

_WORD, _SPACE, _SPACES = (regex.compile(pattern) for pattern in (r"\w", r"\s", r"\s*"))

Part = tuple[str, int | None]
"""A part of a text, and the id of the added token that it is; None for what is left to the BPE."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the pieces.

    Attributes:
        text: what it stands for.
        id: its id.
        special: found only where special tokens are asked for; others are found in every text.
        normalized: looked for in what those that are not have left.
        lstrip, rstrip: takes the white space on that side with it.
        single_word: found only where neither neighbour is a letter, a digit or the like.
    """

    text: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


FLAGS = tuple(field.name for field in fields(AddedToken) if field.name not in ("text", "id"))

_MAX_IDS = 1 << 24


class AddedTokens:
    """Finds added tokens in texts.

    Attributes:
        in_plain_text: whether some are found although special tokens are not asked for.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        """Prepare to find these tokens."""
        by_text = {token.text: token for token in tokens}
        groups = [[t for t in by_text.values() if t.normalized is normalized] for normalized in (False, True)]
        self._tokens = by_text
        self._patterns = [(_any_of(t.text for t in group), _has_words(group)) for group in groups if group]
        self.in_plain_text = _has_words(by_text.values())
        self._longest = max(map(len, by_text), default=0)

    def split(self, text: str, allow_special: bool) -> list[Part]:
        """Cut a text at added tokens; the parts in a row are the text."""
        parts: list[Part] = [(text, None)] if text else []
        for pattern, has_words in self._patterns:
            if allow_special or has_words:
                left, parts = parts, []
                for part, token in left:
                    parts.extend([(part, token)] if token is not None else self._split(pattern, part, allow_special))
        return parts

    def _split(self, pattern: regex.Pattern[str], text: str, allow_special: bool) -> list[Part]:
        parts: list[Part] = []
        done = 0
        for match in pattern.finditer(text):
            token, (begin, end) = self._tokens[match.group()], match.span()
            if token.special and not allow_special:
                continue
            if token.single_word and (_WORD.match(text[max(begin - 1, 0) : begin]) or _WORD.match(text, end)):
                continue
            while token.lstrip and begin > done and _SPACE.match(text, begin - 1):
                begin -= 1
            if token.rstrip:
                end = _end_of_space(text, end)
            begin, end = max(begin, done), max(end, done)
            if done < begin:
                parts.append((text[done:begin], None))
            parts.append((text[begin:end], token.id))
            done = end
        return [*parts, (text[done:], None)] if done < len(text) else parts

    def last_cut(self, text: str, places: re.Pattern[str]) -> int:
        """Return the last place where a text may be cut, whatever follows it; 0 if there is none.

        Args:
            text: the beginning of a longer one.
            places: matches from a text's beginning up to the last place where words allow a cut.
        """
        spans = sorted((m.start(), _end_of_space(text, m.end())) for p, _ in self._patterns for m in p.finditer(text))
        begins, ends = [], []
        for begin, end in spans:
            if ends and begin <= ends[-1]:
                ends[-1] = max(end, ends[-1])
            else:
                begins.append(begin)
                ends.append(end)
        until = len(text) - self._longest  # what begins behind this may be the beginning of a token
        while until > 0 and (found := places.match(text, 0, until)):
            # Nor next to a token, which may look at its neighbours.
            at = bisect_right(begins, cut := found.end()) - 1
            if at < 0 or ends[at] < cut:
                return cut
            until = begins[at]
        return 0


def read_added_tokens(directory: Path, read: ReadJSON) -> dict[str, AddedToken]:
    """Return the tokens which the folder's files declare beside the merges, by their texts."""
    special = special_texts(directory, read)
    found: list[tuple[Path, Any, dict[str, Any]]] = []
    if (path := directory / "tokenizer.json").exists():
        for entry in typed(read(path).get("added_tokens", []), list, "added_tokens", path):
            entry = typed(entry, dict, "entry of added_tokens", path)
            found.append((path, entry.get("id"), entry))
    if (path := directory / "tokenizer_config.json").exists():
        entries = typed(read(path).get("added_tokens_decoder", {}), dict, "added_tokens_decoder", path)
        for i, entry in entries.items():
            entry = typed(entry, dict, "entry of added_tokens_decoder", path)
            found.append((path, int(i) if i.isdecimal() and len(i) < 10 else i, entry))
    if (path := directory / "added_tokens.json").exists():
        found.extend((path, i, {"content": text}) for text, i in read(path).items())
    added: dict[str, AddedToken] = {}
    for path, i, entry in found:
        check_id(text := typed(entry.get("content"), str, "added token", path), i, path)
        flags = {name: typed(entry.get(name, False), bool, f"{name} of {text!r:.80}", path) for name in FLAGS}
        flags["special"] |= text in special
        flags["normalized"] = typed(entry.get("normalized", not flags["special"]), bool, "normalized", path)
        if text in added and added[text].id != i:
            raise UsageError(f"{path}: added token {text!r} has the ids {added[text].id} and {i}")
        if text not in added or path.name != "added_tokens.json":  # which has no flags
            added[text] = AddedToken(text, i, **flags)
    return added


@no_type_check  # called for each of 50,000 tokens
def check_id(token: str, i: Any, path: Path) -> None:
    """Make sure that a token and its id are ones."""
    if not token:
        raise UsageError(f"{path}: id {i!r:.20} is that of a token without text, {token!r}")
    if type(i) is not int or not 0 <= i < _MAX_IDS:
        raise UsageError(
            f"{path}: id of {token[:80]!r} is {repr(i)[:80]}; valid are whole numbers from 0 to {_MAX_IDS - 1}"
        )


def _any_of(texts: Iterable[str]) -> regex.Pattern[str]:
    return regex.compile("|".join(map(regex.escape, sorted(texts, key=len, reverse=True))))


def _has_words(tokens: Iterable[AddedToken]) -> bool:
    return any(not token.special for token in tokens)


def _end_of_space(text: str, begin: int) -> int:
    match = _SPACES.match(text, begin)
    return begin if match is None else match.end()
