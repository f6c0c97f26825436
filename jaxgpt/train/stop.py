"""How a run is asked to stop: a signal once for "finish the step and save"; SIGTERM or SIGINT twice for "now"."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from jaxgpt.signals import STOPS, heard, leave


class Stop:
    """Whether somebody has asked.

    Attributes:
        reason: the signal's name, or None.
    """

    def __init__(self, *, several: bool) -> None:
        """Begin unasked; `several` processes are one run."""
        self.reason: str | None = None
        self._several, self._urged = several, 0

    def requested(self, step: int) -> bool:
        """Return whether to stop after this step; all processes of a run get the same answer."""
        if not self._several:
            return self.reason is not None
        from jax.experimental import multihost_utils

        # JAX's own handler hears SIGTERM on any host, and the hosts agree on the step.
        agreed = multihost_utils.reached_preemption_sync_point(step)
        self.reason = (self.reason or "SIGTERM") if agreed else self.reason
        return agreed

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.reason = self.reason or signal.Signals(number).name
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def urge(self, number: int) -> None:
        """End the process at the second signal, which a thread hears: during a compilation handlers don't run, and two
        signals look like one. Others than these two come in twos and more: from the terminal and the shell, or every
        second beyond a limit of time.
        """
        self._urged += number in (signal.SIGINT, signal.SIGTERM)
        if self._urged == 2:
            leave(128 + number, "\nstopped at once; the last checkpoint is valid")


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Hear signals while the block runs, but for those that the process was begun to ignore, as nohup does SIGHUP.

    In a run of several processes SIGTERM is JAX's, and the others are made one.
    """
    import jax

    several = jax.process_count() > 1
    stop = Stop(several=several)
    ours = [one for one in STOPS if not (several and one == signal.SIGTERM)]
    numbers = [one for one in ours if signal.getsignal(one) is not signal.SIG_IGN]
    with heard(stop.urge):
        before = {number: signal.signal(number, stop.ask) for number in numbers}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
