"""Byte-level BPE: learning merges, against the Rust of `tokenizers`, on the bundled plays repeated to 10 MB."""

from __future__ import annotations

from benchmarks.timing import Benchmark, Work
from jaxgpt.data.sources import PLAYS_FOLDER
from jaxgpt.tokenizers import BPE

MEGABYTES, VOCAB_SIZE = 10, 4096


def benchmarks() -> list[Benchmark]:
    what = f"learning {VOCAB_SIZE:,} tokens from {MEGABYTES} MB of text"
    return [Benchmark("bpe", what, "call", 1, {"jaxgpt": ours, "tokenizers": rust})]


def text() -> list[str]:
    """Return documents of 10 MB together: eight times the same plays, so with the words of one time."""
    once = plays()
    times = -(-MEGABYTES * 10**6 // sum(map(len, once)))
    return once * times


def plays() -> list[str]:
    """Return the bundled plays."""
    return [path.read_text(encoding="utf-8") for path in sorted(PLAYS_FOLDER.glob("*.txt"))]


def ours() -> Work:
    documents = text()
    return lambda: BPE.train(documents, VOCAB_SIZE)


def rust() -> Work:
    import tokenizers

    documents = text()

    def work() -> None:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        )
        tokenizer.train_from_iterator(documents, trainer)

    return work
