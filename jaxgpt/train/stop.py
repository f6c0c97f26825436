"""How a run is asked to stop: SIGTERM or SIGINT once for "finish the step and save", twice for "now"."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether somebody has asked.

    Attributes:
        reason: the signal's name, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def requested(self, step: int) -> bool:
        """Return whether to stop after this step; all processes of a run get the same answer."""
        import jax

        if jax.process_count() == 1:
            return self.reason is not None
        from jax.experimental import multihost_utils

        # JAX's own handler hears SIGTERM on any host, and the hosts agree on the step.
        agreed = multihost_utils.reached_preemption_sync_point(step)
        self.reason = (self.reason or "SIGTERM") if agreed else self.reason
        return agreed


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Hear signals while the block runs; in a run of several processes SIGTERM is JAX's, and SIGINT is made one."""
    import jax

    several = jax.process_count() > 1
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.reason = stop.reason or signal.Signals(number).name
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    with _leave_on_second(numbers):
        before = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _leave_on_second(numbers: tuple[int, ...]) -> Iterator[None]:
    """Count signals in a thread: while the main one compiles, its handlers don't run, and two signals look like one."""
    listen, tell = os.pipe()
    os.set_blocking(tell, False)

    def count() -> None:
        heard = 0
        while byte := os.read(listen, 1):
            heard += byte[0] in numbers
            if heard == 2:
                # Nothing is cleaned up: what is on disk is valid at every moment.
                os.write(sys.stderr.fileno(), b"\nstopped at once; the last checkpoint is valid\n")
                os._exit(128 + byte[0])

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(tell)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        thread.join()
        os.close(listen)
