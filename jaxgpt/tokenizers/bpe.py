"""Byte-level byte-pair encoding, GPT-2's: text to token ids and back.

Text is cut into words by a pattern, each word starts as its UTF-8 bytes, and the merge of lowest rank is applied
until none applies (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019). `bpe_training` learns the
merges, `bpe_files` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import regex

from jaxgpt import checks
from jaxgpt.errors import UsageError
from jaxgpt.files import ReadJSON, read_json
from jaxgpt.tokenizers.added_tokens import AddedToken, AddedTokens, Part
from jaxgpt.tokenizers.bpe_files import BYTES_IN_ORDER, printable, read_vocabulary, write_vocabulary
from jaxgpt.tokenizers.bpe_training import learn_merges
from jaxgpt.tokenizers.roles import END_OF_TEXT

# Which characters count as letters follows the Unicode tables of the `regex` package: letters newer than another
# library's tables are the one place where ids can differ between two implementations of GPT-2's splitting.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
AnyBPE = TypeVar("AnyBPE", bound="BPE")

_GONE = -1  # the id left behind where the right half of a merge stood
_CACHED_WORDS = 1 << 18  # bounds the memory of the cache, about 60 MB
_CACHED_LENGTH = 64  # characters; longer words are seldom met twice


@dataclass(frozen=True)
class MergeStep:
    """One line of `BPE.explain`.

    Attributes:
        pieces: the word's pieces after the merge, in GPT-2's printable spelling (a space is `Ġ`).
        rank: the merge's place in the order of training, from 0; None for the bytes that the word starts from.
    """

    pieces: tuple[str, ...]
    rank: int | None

    def __str__(self) -> str:
        return f"{'bytes' if self.rank is None else self.rank:>6}  {' '.join(self.pieces)}"


class BPE:
    """A byte-level BPE vocabulary: immutable, and without a file behind it.

    Ids of a trained vocabulary are laid out as GPT-2's: 256 bytes, then one id per merge, then special tokens.
    Decoded text replaces bytes that are not UTF-8 by U+FFFD. A lone surrogate in the input, which no UTF-8 can hold,
    is read as U+FFFD too, and a pair of them as the character they stand for (tiktoken's policy).

    Args:
        merges: pairs of pieces in order of rank; each piece and each joined pair is in `vocab`.
        vocab: piece to id; has all 256 single bytes.
        special_tokens: text to id. They stand for themselves only where `encode` is told to look for them.
        added_tokens: others that stand for themselves, in every text or in a way of their own.
    """

    def __init__(
        self,
        merges: Iterable[tuple[bytes, bytes]],
        vocab: Mapping[bytes, int],
        special_tokens: Mapping[str, int],
        added_tokens: Iterable[AddedToken] = (),
    ):
        self.merges, self.vocab = tuple(checks.read("merges", merges)), dict(vocab)
        self.added_tokens = {text: AddedToken(text, i) for text, i in special_tokens.items()}
        self.added_tokens |= {token.text: token for token in checks.read("added_tokens", added_tokens)}
        self.special_tokens = {token.text: token.id for token in self.added_tokens.values() if token.special}
        self.added = AddedTokens(self.added_tokens.values())
        self.vocab_size = 1 + max(chain(vocab.values(), (token.id for token in self.added_tokens.values())))
        self._byte_ids = [vocab[bytes([byte])] for byte in range(256)]
        self._ranks = {(vocab[a], vocab[b]): rank for rank, (a, b) in enumerate(self.merges)}
        self._merged = [vocab[a + b] for a, b in self.merges]
        self._pieces = {i: piece for piece, i in vocab.items()} | {
            token.id: text.encode() for text, token in self.added_tokens.items()
        }
        self._pattern = regex.compile(PATTERN)
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls: type[AnyBPE],
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        progress: bool = False,
    ) -> AnyBPE:
        """Learn a vocabulary of `vocab_size` ids from `texts`, each a document of its own.

        The most frequent pair is merged first; of equally frequent ones, that of the lowest ids (the rule of the
        `tokenizers` package, so merges compare one to one). The vocabulary is smaller where the texts hold too few
        distinct pairs. `progress` shows a bar on the terminal.
        """
        num_pieces = vocab_size - len(special_tokens)
        if num_pieces < 256:
            raise UsageError(f"vocab_size {vocab_size}: needs at least {256 + len(special_tokens)} (bytes, specials)")
        if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
            raise UsageError(f"special_tokens {list(special_tokens)}: must be distinct and not empty")
        pattern = regex.compile(PATTERN)
        words = (word for text in texts for word in pattern.findall(replace_surrogates(text)))
        merges = learn_merges(words, num_pieces, progress=progress)
        return cls.from_merges(merges, special_tokens)

    @classmethod
    def from_merges(
        cls: type[AnyBPE], merges: Iterable[tuple[bytes, bytes]], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> AnyBPE:
        """Lay the ids out as GPT-2 does: bytes, merges, special tokens. All that OpenAI's `vocab.bpe` leaves to say."""
        merges = tuple(checks.read("merges", merges))
        pieces = dict.fromkeys(chain((bytes([byte]) for byte in BYTES_IN_ORDER), (a + b for a, b in merges)))
        vocab = {piece: i for i, piece in enumerate(pieces)}
        return cls(merges, vocab, {token: len(vocab) + i for i, token in enumerate(special_tokens)})

    @classmethod
    def load(cls: type[AnyBPE], directory: str | Path, *, read: ReadJSON | None = None) -> AnyBPE:
        """Read a folder's `vocab.json` + `merges.txt`, or `tokenizer.json`, or OpenAI's `vocab.bpe`.

        Args:
            directory: the folder.
            read: reads its JSON files; None: each once.

        Raises:
            UsageError: naming the file, and the line or piece, where they do not make a byte-level BPE.
        """
        merges, vocab, added_tokens = read_vocabulary(Path(directory), read or cache(read_json))
        return cls.from_merges(merges) if vocab is None else cls(merges, vocab, {}, added_tokens)

    def save(self, directory: str | Path) -> None:
        """Write `vocab.json` and `merges.txt`, which `tokenizers` and `transformers` open with equal ids."""
        write_vocabulary(Path(directory), self.merges, self.vocab, self.added_tokens.values())

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of `text`; `allow_special` reads the text of a special token as that token."""
        text = replace_surrogates(checks.text("text", text))
        if not checks.flag("allow_special", allow_special) and not self.added.in_plain_text:
            return self._encode_plain(text)
        return self.encode_parts(self.added.split(text, allow_special))

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Return the ids of a text that has been cut at added tokens."""
        ids: list[int] = []
        for part, token in parts:
            ids.extend(self._encode_plain(part) if token is None else [token])
        return ids

    def decode(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[SupportsIndex] | np.ndarray | Any) -> bytes:
        """Return the exact bytes of `ids`, which may begin or end inside a character."""
        try:
            return b"".join([self._pieces[i] for i in checks.ids("ids", ids).tolist()])
        except KeyError as error:
            raise UsageError(f"token id {error}: not in this vocabulary of {self.vocab_size} ids") from None

    def size(self, token_id: int) -> int:
        """Return how many bytes an id stands for."""
        return len(self._pieces[token_id])

    def explain(self, word: str) -> list[MergeStep]:
        """Return how `word` is built: its bytes, then its pieces after each merge. `print(*steps, sep="\\n")`.

        An added token that is found in every text is built of nothing: it is one piece.

        Raises:
            UsageError: if the pattern cuts `word` into several words, between which nothing is ever merged.
        """
        words: list[str] = []
        tokens: list[str] = []
        for part, token in self.added.split(replace_surrogates(checks.text("word", word)), allow_special=False):
            words += self._pattern.findall(part) if token is None else [part]
            tokens += [] if token is None else [part]
        if len(words) != 1:
            raise UsageError(f"{word!r} is {len(words)} words to the tokenizer, {words}: explain one at a time")
        if tokens:
            return [MergeStep((tokens[0],), None)]
        ids = [self._byte_ids[byte] for byte in words[0].encode()]
        steps = []
        for rank in chain([None], self._apply_merges(ids)):
            steps.append(MergeStep(tuple(printable(self._pieces[i]) for i in ids if i != _GONE), rank))
        return steps

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for match in self._pattern.finditer(text):
            word = match.group()
            known = self._cache.get(word)
            if known is None:
                known = self.encode_word(word.encode())
                if len(word) <= _CACHED_LENGTH:
                    if len(self._cache) >= _CACHED_WORDS:
                        self._cache.clear()
                    self._cache[word] = known
            ids.extend(known)
        return ids

    def encode_word(self, word: bytes) -> list[int]:
        """Return the ids of one word: merges applied lowest rank first, from the left among equals."""
        ids = [self._byte_ids[byte] for byte in word]
        for _ in self._apply_merges(ids):
            pass
        return [i for i in ids if i != _GONE]

    def _apply_merges(self, ids: list[int]) -> Iterator[int]:
        """Merge `ids` in place, leaving `_GONE` where a right half stood; yield each merge's rank.

        A linked list and a heap: a word of n bytes costs n log n, where scanning for the best pair costs n².
        """
        ranks, end = self._ranks, len(ids)
        after, before = list(range(1, end + 1)), list(range(-1, end))
        # Rank and position in one integer, which compares faster than a tuple and in the same order.
        heap = [ranks[pair] * end + i for i, pair in enumerate(pairwise(ids)) if pair in ranks]
        heapify(heap)
        while heap:
            rank, i = divmod(heappop(heap), end)
            j = after[i]
            if j == end or ranks.get((ids[i], ids[j])) != rank:
                continue  # one of the two has been merged with its other neighbour since
            ids[i], ids[j] = self._merged[rank], _GONE
            after[i] = k = after[j]
            before[k] = i
            for left, right in ((before[i], i), (i, k)):
                if left >= 0 and right < end and (found := ranks.get((ids[left], ids[right]))) is not None:
                    heappush(heap, found * end + left)
            yield rank


def replace_surrogates(text: str) -> str:
    """Return `text` as UTF-8 can hold it: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
