"""How fast a run is and how long it still takes: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from jax import Array

from jaxgpt.train.budget import peak_flops


class Meter:
    """Measures between two rows of metrics; time spent on evaluation and saving is not counted as training."""

    def __init__(self, *, step: int, until: int, tokens_per_step: int, flops_per_token: int | None) -> None:
        """Begin at `step` of `until`, with what one update of all devices together amounts to."""
        self.until = until
        self.tokens_per_step = tokens_per_step
        peak = peak_flops()
        # The share of the devices' peak that one token a second takes.
        self.share = None if flops_per_token is None or peak is None else flops_per_token / peak
        self.live = sys.stdout.isatty()
        self._step, self._begin = step, time.perf_counter()
        self._away = 0.0

    def first_step(self, result: Array) -> None:
        """Wait for the first update's result, and leave out the time that it took to compile."""
        result.block_until_ready()
        self.say(f"compiled, and made the first update, in {time.perf_counter() - self._begin - self._away:.1f} s")
        self._begin, self._away, self._step = time.perf_counter(), 0.0, self._step + 1

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

    def show(self, text: str) -> None:
        """Replace the live line, or print one where the output is no terminal."""
        print(f"\r{text}\x1b[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r{text}\x1b[K" if self.live else text, flush=True)


def duration(seconds: float) -> str:
    """Write a number of seconds as 1:02:03 or 2:03."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
