"""A trace of a few updates by JAX's profiler."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from jaxgpt.errors import UsageError
from jaxgpt.progress import say

SKIPPED, TRACED = 2, 3
"""Updates before those that are traced, the first of which compiles, and how many are."""


class StepProfile:
    """Traces the updates behind the first of a process."""

    def __init__(self, folder: Path, begun: int) -> None:
        """Be ready to write into `folder`, in a run that goes on from step `begun`."""
        self._folder, self._first = folder, begun + SKIPPED
        self._tracing = False

    def update(self, done: int, result: jax.Array) -> None:
        """Begin or end with the update that gives `result`, for which that waits."""
        if done == self._first:
            result.block_until_ready()
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._tracing = True
        elif done == self._first + TRACED:
            result.block_until_ready()
            self.close()
            say(f"profile: updates {self._first + 1} to {done}, in {trace_file(self._folder)};")
            say("         open it at https://ui.perfetto.dev, which reads it where you are")

    def close(self) -> None:
        """End, if it is under way."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def trace_file(folder: Path) -> Path:
    """Return the newest trace in a folder."""
    found = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    return max(found, key=lambda file: file.stat().st_mtime, default=folder)


def check_profile(folder: str, *, updates: int) -> None:
    """Make sure that a trace can be made, before anything is computed.

    Raises:
        UsageError: the folder can't be written to, or there are not so many updates to make.
    """
    if updates < (needed := SKIPPED + TRACED):
        raise UsageError(f"--profile {folder}: needs {needed} updates, and there are {updates} to make")
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--profile {folder}: {there} is no folder that can be written to")
