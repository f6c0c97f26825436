"""Signals, heard at every moment.

Python runs a handler in the main thread, between two of its own instructions: never while XLA compiles. And what a
handler raises crashes a library in the middle of its import, or is lost in a callback. So nothing is raised here: a
thread listens too, and a process that is to end does so where it stands. What is on disk is valid at every moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOPS = tuple(one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"))
"""What asks a run to stop, as far as this system has it. SIGUSR1 is what Slurm warns with, SIGXCPU a limit of time."""
PATIENCE = 1.0
"""Seconds that the main thread has to answer an interrupt, tidying up included."""

_last: list[Callable[[], object]] = []


def leave(code: int, line: str) -> NoReturn:
    """Say a line and end the process, without the orderly end, in which an interrupted JAX may crash or wait."""
    with contextlib.suppress(OSError):  # standard error may be gone
        os.write(2, f"{line}\n".encode())
    os._exit(code)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C end the process with a line and exit code 130, from here on and whatever it does."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a shell runs in the background
        signal.signal(signal.SIGINT, _interrupted)
    with heard(_insist):
        yield


@contextlib.contextmanager
def on_interrupt(action: Callable[[], object]) -> Iterator[None]:
    """Do something before an interrupt ends the process in this block; a text that it returns is said then."""
    _last.append(action)
    try:
        yield
    finally:
        _last.remove(action)


@contextlib.contextmanager
def tidied(action: Callable[[], object]) -> Iterator[None]:
    """Do something at the end of the block, be it the end of the process by an interrupt."""
    with on_interrupt(action):
        try:
            yield
        finally:
            action()


@contextlib.contextmanager
def heard(act: Callable[[int], None]) -> Iterator[None]:
    """Have a thread call `act` with the number of each signal that Python handles, as soon as it comes."""
    listen, tell = os.pipe()
    if hasattr(os, "set_blocking"):  # Windows has it from Python 3.12 on, and asks for it nowhere
        os.set_blocking(tell, False)
    thread = threading.Thread(target=_listen, args=(listen, act), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(tell)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        thread.join()
        os.close(listen)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to every process, from those that are started in the block."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hang_up() -> None:
    """Do as when the terminal is closed, as the reader of the output has gone: a run saves, and under nohup goes on.

    Raises:
        SystemExit: there is nothing to save.
    """
    hangup = next((one for one in STOPS if one.name == "SIGHUP"), None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_DFL:
        sys.exit(1)
    signal.raise_signal(hangup)


class Stop:
    """A request to stop.

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

    In a run of several processes SIGTERM is JAX's, and the others are made one. Outside the main thread, as in a web
    application, none is heard: Python lets no other thread handle signals.
    """
    import jax

    several = jax.process_count() > 1
    stop = Stop(several=several)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours = [one for one in STOPS if not (several and one == signal.SIGTERM)]
    numbers = [one for one in ours if signal.getsignal(one) is not signal.SIG_IGN]
    with heard(stop.urge):
        before = {number: signal.signal(number, stop.ask) for number in numbers}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    said = ""
    for action in reversed(_last):
        with contextlib.suppress(Exception):  # the next process finds what this one left
            said += f"; {more}" if isinstance(more := action(), str) else ""
    _leave_interrupted(said)


def _insist(number: int) -> None:
    if number == signal.SIGINT and signal.getsignal(signal.SIGINT) is _interrupted:
        time.sleep(PATIENCE)
        _leave_interrupted()


def _leave_interrupted(said: str = "") -> NoReturn:
    # A terminal has just written ^C into the line.
    leave(128 + signal.SIGINT, ("\n" if os.isatty(2) else "") + f"interrupted{said}")


def _listen(listen: int, act: Callable[[int], None]) -> None:
    while byte := os.read(listen, 1):
        act(byte[0])
