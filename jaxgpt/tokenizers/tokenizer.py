"""Tokenizers behind one interface: characters, a byte-level BPE, and GPT-2's own, which the package carries.

`load_tokenizer` opens one by name or folder: a run's, or one of Hugging Face's. It never reaches for the network and
never runs code that a folder brings along.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
import tiktoken

from jaxgpt import checks
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.files import ReadJSON, digest, read_json
from jaxgpt.tokenizers.added_tokens import FLAGS, AddedToken, read_added_tokens
from jaxgpt.tokenizers.bpe import BPE, PATTERN, replace_surrogates
from jaxgpt.tokenizers.bpe_files import other_kind, printable, read_chat_template, write_chat_template
from jaxgpt.tokenizers.char import CHARS_FILE, CharTokenizer
from jaxgpt.tokenizers.ends import Ends, write_tokenizer_json
from jaxgpt.tokenizers.hf_tokenizer import HFTokenizer
from jaxgpt.tokenizers.meta_pickle import META_FILE
from jaxgpt.tokenizers.roles import END_OF_TEXT, GPT2_ROLES, read_config, read_roles

_GPT2_FOLDER = Path(__file__).parent / "gpt2"
# A folder with one of these has a tokenizer.
TOKENIZER_FILES = (CHARS_FILE, "vocab.json", "tokenizer.json", META_FILE)
_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# What a config says that has no meaning here, and has one where it is opened again.
_KEPT = (
    "additional_special_tokens", "clean_up_tokenization_spaces", "extra_special_tokens", "model_max_length",
    "padding_side", "truncation_side",
)  # fmt: skip


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of all tokenizers.

    `fingerprint` is a SHA-256 of all that decides the ids. `encode` gives a whole text's, and `encode_part` those of a
    part of one: without `ends`, what the tokenizer puts before and behind each text.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def ends(self) -> Ends: ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str, allow_special: bool = False) -> list[int]: ...
    def encode_part(self, text: str, allow_special: bool = False) -> list[int]: ...
    def decode(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> str: ...
    def decode_bytes(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> bytes: ...
    def save(self, directory: str | Path) -> None: ...


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """Open the tokenizer `"gpt2"` (bundled, whatever folders are here), or that of a folder.

    A folder has `chars.json`, or `vocab.json` and `merges.txt`, or `tokenizer.json`, or nanoGPT's `meta.pkl`. A
    `tokenizer.json` of another kind than GPT-2's takes the optional package `tokenizers`.

    Raises:
        UsageError: naming the folder or file, where it is none of these or is broken.
    """
    if isinstance(name_or_dir, str) and name_or_dir == "gpt2":
        return BPETokenizer.load(_GPT2_FOLDER, name="gpt2")
    directory = checks.path("tokenizer", name_or_dir, "'gpt2' or the path of a folder")
    if not directory.is_dir():
        hint = did_you_mean(str(name_or_dir), ["gpt2"])
        raise UsageError(f"tokenizer {str(name_or_dir)!r}: must be 'gpt2' or a folder with a tokenizer's files{hint}")
    if (directory / CHARS_FILE).exists():
        return CharTokenizer.load(directory)
    if (directory / META_FILE).exists() and not any((directory / file).exists() for file in TOKENIZER_FILES[:-1]):
        return CharTokenizer.load_meta(directory)
    read = cache(read_json)
    if (why := _other_kind(directory, read)) is not None:
        return HFTokenizer(directory, why, read)
    return BPETokenizer.load(directory, read=read)


def _other_kind(directory: Path, read: ReadJSON) -> str | None:
    """Return what tells a folder's `tokenizer.json` from one of GPT-2's kind; None where nothing does, or is none."""
    if not (path := directory / "tokenizer.json").exists():
        return None
    if (kind := read_config(directory, read).get("tokenizer_class")) not in _CLASSES:
        return f"{directory / 'tokenizer_config.json'}: tokenizer_class {kind!r} is no GPT-2's"
    return other_kind(read(path), path)


def count_ids(directory: Path) -> int | None:
    """Return the `vocab_size` of a folder's tokenizer, without building it; None if it has none that can be read."""
    read = cache(read_json)
    try:
        if (directory / CHARS_FILE).exists():
            return CharTokenizer.load(directory).vocab_size
        if (directory / "vocab.json").exists():
            vocab = read(directory / "vocab.json")
        elif (directory / "tokenizer.json").exists():
            vocab = read(directory / "tokenizer.json")["model"]["vocab"]
            if isinstance(vocab, list):  # of pieces and their scores, in the order of ids
                vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
        else:
            return None
        return checks.whole(
            "the last id",
            1
            + max({**vocab, **{text: token.id for text, token in read_added_tokens(directory, read).items()}}.values()),
            1,
        )
    except (UsageError, KeyError, TypeError, ValueError):  # whoever opens it is told
        return None


class BPETokenizer(BPE):
    """A `BPE` as a tokenizer: with a name, tokens that have roles, Hugging Face's config file, and tiktoken's speed.

    What a folder says beyond its ids goes along from where it was loaded to where it is saved: the chat template, of
    which `chat` knows what it is for, and settings of Hugging Face's that have no meaning here.

    Attributes:
        roles: texts of the tokens that begin, end, pad a text and so on, by Hugging Face's names.
        ends: what is put before and behind each text.
    """

    name = "bpe"

    def __init__(
        self,
        merges: Sequence[tuple[bytes, bytes]],
        vocab: Mapping[bytes, int],
        special_tokens: Mapping[str, int],
        added_tokens: Iterable[AddedToken] = (),
    ):
        super().__init__(merges, vocab, special_tokens, added_tokens)
        default = END_OF_TEXT if END_OF_TEXT in self.added_tokens else None
        self.roles: dict[str, str | None] = dict.fromkeys(GPT2_ROLES, default)
        self.ends = Ends()
        self.chat_template: str | None = None
        self._kept: dict[str, Any] = {}

    @classmethod
    def load(cls, directory: str | Path, name: str = "bpe", *, read: ReadJSON | None = None) -> BPETokenizer:
        """Read a folder as `BPE.load` does, and what its config says."""
        directory, read = Path(directory), read or cache(read_json)
        config = read_config(directory, read)
        _refuse_other_ids(directory / "tokenizer_config.json", config)
        tokenizer = super().load(directory, read=read)
        tokenizer.name = name
        given = {
            role: text if role in config or text in tokenizer.added_tokens else None
            for role, text in read_roles(config).items()
        }
        eos = given["eos_token"]
        if eos is not None and not (isinstance(eos, str) and eos in tokenizer.added_tokens):
            valid = ", ".join(map(repr, tokenizer.special_tokens))
            raise UsageError(f"{directory}: eos_token {eos!r} is no special token of this vocabulary (it has {valid})")
        for role, text in given.items():
            if text is not None and not isinstance(text, str):
                raise UsageError(f"{directory}: {role} is {str(text)[:80]}; it must be the text of a token")
        tokenizer.roles = {role: text for role, text in given.items() if text is not None or role in GPT2_ROLES}
        ids = [tokenizer.role_id(role) for role in ("bos_token", "eos_token")]
        tokenizer.ends = Ends.read(directory, config, *ids, read=read)
        for i in (*tokenizer.ends.begin, *tokenizer.ends.end):
            if i not in tokenizer._pieces:
                raise UsageError(f"{directory}: each text is to begin or end with id {i}, which the vocabulary has not")
        tokenizer._kept = {key: config[key] for key in _KEPT if key in config}
        if (template := read_chat_template(directory, read)) is not None:
            tokenizer.chat_template, _ = template
        return tokenizer

    def with_special_tokens(self, tokens: Iterable[str]) -> BPETokenizer:
        """Return a tokenizer that has `tokens` too, behind the last id; all other ids stay as they are."""
        added = dict(self.added_tokens)
        pieces = {printable(piece) for piece in self.vocab}
        for token in tokens:
            if not token or token in pieces or token != replace_surrogates(token):
                raise UsageError(f"special token {token!r}: must be a text that is no piece of the vocabulary")
            added.setdefault(token, AddedToken(token, self.vocab_size + len(added) - len(self.added_tokens)))
        tokenizer = BPETokenizer(self.merges, self.vocab, {}, added.values())
        tokenizer.roles, tokenizer.ends, tokenizer._kept = self.roles, self.ends, self._kept
        tokenizer.chat_template = self.chat_template
        return tokenizer

    def save(self, directory: str | Path) -> None:
        """Write `vocab.json`, `merges.txt` and `tokenizer_config.json`: `AutoTokenizer` opens them with equal ids.

        And `chat_template.jinja` where there is one, and `tokenizer.json` where something is put around texts.
        """
        super().save(directory)
        directory = Path(directory)
        added = {
            str(token.id): {"content": text} | {flag: getattr(token, flag) for flag in FLAGS}
            for text, token in self.added_tokens.items()
        }
        config = {"add_prefix_space": False, "added_tokens_decoder": added, "tokenizer_class": "GPT2Tokenizer"}
        contents = json.dumps(config | self._kept | self.roles, indent=2, sort_keys=True)
        (directory / "tokenizer_config.json").write_text(contents + "\n", encoding="utf-8")
        if self.ends != Ends():
            texts = {i: printable(piece) for piece, i in self.vocab.items()}
            texts |= {token.id: text for text, token in self.added_tokens.items()}
            merges = [(printable(a), printable(b)) for a, b in self.merges]
            listed = [{"id": int(i), **entry} for i, entry in added.items()]
            vocab = {text: i for i, text in sorted(texts.items())}
            write_tokenizer_json(directory, vocab, merges, listed, self.ends.processor(texts))
        if self.chat_template is not None:
            write_chat_template(directory, self.chat_template)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a whole text, `ends` among them; `allow_special` reads a special token's text as it."""
        return [*self.ends.begin, *self.encode_part(text, allow_special), *self.ends.end]

    def encode_part(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a part of a text, to which nothing is added."""
        return super().encode(text, allow_special)

    def role_id(self, role: str) -> int | None:
        """Return the id of the token that has this role; None where none has, or the vocabulary lacks it."""
        token = self.added_tokens.get(self.roles.get(role) or "")
        return None if token is None else token.id

    @property
    def eos_token(self) -> str | None:
        """The text of the token that ends a text."""
        return self.roles["eos_token"]

    @property
    def eos_token_id(self) -> int | None:
        """The id that separates documents and ends a generation; None where the vocabulary has none."""
        return self.role_id("eos_token")

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that decides the ids."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        vocab = sorted((i, piece.hex()) for piece, i in self.vocab.items())
        merges = [(a.hex(), b.hex()) for a, b in self.merges]
        tokens = sorted(self.added_tokens.values(), key=lambda token: token.text)
        digested: list[Any] = [merges, vocab, [(token.text, token.id) for token in tokens]]
        if any(token != AddedToken(token.text, token.id) for token in tokens) or self.ends != Ends():
            digested += [[astuple(token) for token in tokens], astuple(self.ends)]
        return digest(digested)

    def _encode_plain(self, text: str) -> list[int]:
        # Short texts are encoded before tiktoken's tables would have been built.
        if len(text) < 10_000 or _has_long_space(text) or self._tiktoken is None:
            return super()._encode_plain(text)
        return self._tiktoken.encode_ordinary(text)

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding | None:
        """The same function in Rust, or None where tiktoken's shortcut would give other ids.

        tiktoken knows no merges: it joins neighbours whenever the result is a piece, lowest id first. That is the same
        if ids follow the order of merges and each piece, encoded alone, is itself. For the pieces inside a stretch of
        text evolve as they do alone until something joins across its ends; so when the stretch's piece comes up, its
        two last parts are those of the merge that made it.
        """
        ids = [self.vocab[a + b] for a, b in self.merges]
        if ids != sorted(set(ids)) or any(self.encode_word(piece) != [i] for piece, i in self.vocab.items()):
            return None
        return tiktoken.Encoding(self.name, pat_str=PATTERN, mergeable_ranks=self.vocab, special_tokens={})


def _refuse_other_ids(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config by which a text has other ids than GPT-2's way of encoding gives."""
    if (kind := config.get("tokenizer_class")) not in _CLASSES:
        raise UsageError(
            f"{path}: tokenizer_class {kind!r} is not supported; valid is 'GPT2Tokenizer', or a tokenizer.json beside"
        )
    if config.get("add_prefix_space"):
        raise UsageError(f"{path}: add_prefix_space is not supported; put the space into the text")


def _has_long_space(text: str) -> bool:
    # tiktoken's regex overflows its stack in about a million spaces. A run half as long covers one of these probes.
    return any(text[i : i + 1_000].isspace() for i in range(0, len(text), 200_000))
