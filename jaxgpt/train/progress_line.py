"""The speed of a run and the time it still takes: one live line with a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxgpt.progress import Bar, bar, say
from jaxgpt.train.budget import peak_flops

FORMAT = "step {n_fmt}/{total_fmt} |{bar:12}| {desc}"


class ProgressLine:
    """The place of a run, and its speed between two rows of metrics, of which evaluation and saving are no part."""

    def __init__(self, *, step: int, until: int, tokens_per_step: int, flops_per_token: int | None) -> None:
        """Begin at `step` of `until`, with what one update of all devices together amounts to."""
        self.until = until
        self.tokens_per_step = tokens_per_step
        peak = peak_flops()
        # The share of the devices' peak that one token a second takes.
        self.share = None if flops_per_token is None or peak is None else flops_per_token / peak
        self._bar: Bar | None = None
        self._step, self._begin = step, time.perf_counter()
        self._away = 0.0

    def first_step(self, result: Any) -> None:
        """Wait for the first update's result, and leave out the time that it took to compile."""
        result.block_until_ready()
        self._begin, self._away, self._step = time.perf_counter(), 0.0, self._step + 1
        if sys.stdout.isatty():
            how = {"initial": self._step, "unit_scale": False, "delay": 0, "bar_format": FORMAT}
            self._bar = bar("", total=self.until, file=sys.stdout, **how)

    def advance(self, step: int) -> None:
        """Move the bar, if there is one."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def read(self, step: int) -> tuple[float | None, float | None, float]:
        """Return tokens/s since the last reading, MFU (None without a known peak), and seconds left to the end.

        Of the first step, which is mostly compilation, there is no speed.
        """
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._begin - self._away
        self._step, self._begin, self._away = step, now, 0.0
        if steps == 0:
            return None, None, 0.0
        speed = self.tokens_per_step * steps / seconds
        mfu = None if self.share is None else speed * self.share
        return speed, mfu, (self.until - step) * seconds / steps

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time that the block takes out of the next reading."""
        begin = time.perf_counter()
        yield
        self._away += time.perf_counter() - begin

    def show(self, step: int, text: str) -> None:
        """Put what is measured beside the bar, or print a line where the output is no terminal."""
        if self._bar is None:
            say(f"step {step}/{self.until} | {text}")
        else:
            self._bar.set_description_str(text)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
