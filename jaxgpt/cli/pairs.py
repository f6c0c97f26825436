"""Pairs of answers as batches, for the two stages that learn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxgpt.cli.stage import Examples, Start, read_examples, room
from jaxgpt.text.encoded import EncodedPair, encode_pairs
from jaxgpt.text.examples import Pairs, pairs_batch
from jaxgpt.text.records import read_pairs
from jaxgpt.train.stages import StageConfig


@dataclass(frozen=True)
class PairData:
    """The pairs to train on and to validate on, and T, the length of their rows."""

    train: list[EncodedPair]
    val: list[EncodedPair]
    length: int

    def examples(self, reference: Callable[[], Mapping[str, np.ndarray]] = dict) -> Examples:
        """Return them as batches; `reference` gives what is known of the "train" and the "val" ones."""

        def batch(part: Sequence[EncodedPair], name: str, rows: np.ndarray) -> Pairs:
            return pairs_batch(part, rows, length=self.length, pad_id=0, reference=reference().get(name))

        sizes = len(self.train), len(self.val)
        return Examples(sizes, (partial(batch, self.train, "train"), partial(batch, self.val, "val")))

    def prompts(self, count: int) -> list[tuple[int, ...]]:
        """Return the first different prompts to validate on."""
        found = (pair.chosen.ids[: pair.chosen.weights.index(1)] for pair in self.val)
        return list(dict.fromkeys(found))[:count]

    def about(self, flags: StageConfig) -> list[str]:
        """Return lines that say what there is."""
        return [
            f"data:  {flags.dataset}, {len(self.train):,} pairs to train on, {len(self.val):,} to validate on;",
            f"       with their prompts of up to {self.length} tokens",
        ]


def open_pairs(flags: StageConfig, start: Start) -> PairData:
    """Read the pairs."""
    train, val = (
        encode_pairs(part, start.tokenizer, start.template, length=room(flags, start.config))
        for part in read_examples(flags, read_pairs)
    )
    length = max(len(answer.ids) for pair in (*train, *val) for answer in (pair.chosen, pair.rejected))
    return PairData(train, val, length)
