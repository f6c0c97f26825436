"""The speed of decoding: `generate.py --verbose`."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

Steps = Iterator[list[int | None]]


class TimedStream:
    """Passes on what `begin` yields, a `Stream` at each call, and measures how fast it comes."""

    def __init__(self, begin: Callable[[], Any], *, draft: bool) -> None:
        for _ in itertools.islice(begin(), 2):  # compiles both programs
            pass
        self._stream, self._draft = begin(), draft
        self._seconds: list[float] = []
        self._counts: list[int] = []
        self._passes: list[int] = []

    def __iter__(self) -> Steps:
        before = time.perf_counter()
        for step in self._stream:
            self._seconds.append(time.perf_counter() - before)
            self._counts.append(sum(token is not None for token in step))
            self._passes.append(self._stream.passes)
            yield step
            before = time.perf_counter()

    def report(self, prompt_tokens: int) -> str:
        """Return lines for prefill and decoding.

        A sliding context's own prefills, and what is compiled for them, are not in the median pass.
        """
        prefill, *steps = self._seconds
        lines = [f"prefill: {prompt_tokens} tokens in {prefill:.3f} s, {prompt_tokens / prefill:.1f} tokens/s"]
        # With a draft, most steps come with the one before.
        passes = itertools.pairwise(self._passes)
        made = [seconds for seconds, (before, now) in zip(steps, passes, strict=True) if now > before]
        if made:
            tokens, each = sum(self._counts[1:]), statistics.median(made)
            more = f"{len(steps) / len(made):.2f} tokens of a sample a pass, " if self._draft else ""
            speed = f"{1000 * each:.2f} ms a {'pass' if self._draft else 'step'}"
            lines.append(f"decode: {tokens} tokens, {more}{speed}, {tokens / len(made) / each:.1f} tokens/s")
        return "\n".join(lines)
