"""Jinja templates from anyone's folder, rendered in a process of their own with limits of time and memory (`sandbox`).

One process renders all of them, one after the other. It is started when the first one is needed, and again where a
template has ended it; it ends with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.errors import RunError, UsageError

_MAX_SOURCE = 1 << 20  # characters
# Conversations, and characters of them, that are sent at a time: one by one they would wait for each other's turn.
_BATCH, _BATCH_SIZE = 64, 1 << 20
_LENGTH_BYTES = 8  # of a message
# The program finds Jinja where this one does, whatever lies in the current folder.
_START = """\
import runpy, sys
program, memory, seconds, *sys.path[:] = sys.argv[1:]
sys.argv[1:] = memory, seconds
runpy.run_path(program, run_name="__main__")"""


@dataclass(frozen=True)
class Template:
    """A template, which messages call `name`.

    Raises:
        UsageError: the source is too long.
    """

    source: str
    name: str

    def __post_init__(self) -> None:
        if (size := len(self.source)) > _MAX_SOURCE:
            raise UsageError(f"{self.name}: {size} characters is too large for a template (limit {_MAX_SOURCE})")

    def texts(self) -> list[str]:
        """Return all that the source has literally: the text between blocks, and the strings in them.

        Raises:
            UsageError: it is no template.
        """
        [answer] = renderer.ask(_json({"source": self.source}), 1)
        return self._checked(answer)["texts"]

    def render(self, given: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Yield what is made of each of `given`: a text, and where in it `{% generation %}` blocks begin and end.

        Args:
            given: variables. Some are read ahead.

        Raises:
            UsageError: the template fails, by itself or because of the variables whose turn it is.
        """
        for batch in _batches(map(_json, given)):
            sized = ", ".join(f"[{len(one)}, {one}]" for one in batch)
            request = f'{{"source": {_json(self.source)}, "given": [{sized}]}}'
            for answer in renderer.ask(request, len(batch)):
                found = self._checked(answer)
                yield found["text"], [(begin, end) for begin, end in found["spans"]]

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise UsageError(f"{self.name}: the chat template fails{answer['error']}")
        return answer


class Renderer:
    """The process that renders, started when it is needed.

    Args:
        memory: bytes that it may have; a template and a conversation take some thousandths.
        seconds: of computing that a rendering may take, in place of some thousandths.
        patience: seconds that many may take, where there is no limit to computing.
    """

    def __init__(self, memory: int = 1 << 30, seconds: float = 2.0, patience: float = 30.0) -> None:
        self._memory, self._seconds, self._patience = memory, seconds, patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._limits_time = True

    def ask(self, request: str, count: int) -> list[dict[str, Any]]:
        """Return the answers to a request, in order; fewer than `count` if the last one has ended the process."""
        with self._lock:
            try:
                if self._process is not None and self._process.poll() is not None:
                    self.end()
                return list(self._exchange(self._process or self._start(), request, count))
            except BaseException:
                self.end()  # what was under way would be taken for the answer to the next request
                raise

    def end(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()

    def _exchange(self, process: subprocess.Popen[bytes], request: str, count: int) -> Iterator[dict[str, Any]]:
        clock = threading.Timer(self._patience, process.kill)
        clock.daemon = True
        if not self._limits_time:
            clock.start()
        content = request.encode("utf-8", "surrogatepass")
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as reading will show
            process.stdin.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
            process.stdin.flush()
        for _ in range(count):
            answer = _read(process)
            if answer is None:
                yield {"error": f": {self._reason(process.wait())}"}
                self.end()
                break
            yield answer
        clock.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        program = Path(__file__).with_name("sandbox.py")
        words = [program, self._memory, self._seconds, *sys.path]
        # A session of its own, so that Ctrl-C in a terminal is heard here alone.
        self._process = process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        unlimited = _read(process)
        if unlimited is None:
            raise RunError(f"the process that renders chat templates does not start (exit code {process.wait()})")
        self._limits_time = "time" not in unlimited
        if "memory" in unlimited:
            print("note: the memory that chat templates take can't be limited on this platform", file=sys.stderr)
        return process

    def _reason(self, code: int) -> str:
        if self._limits_time and code == -signal.SIGPROF:
            return f"it has not ended after {self._seconds:g} seconds"
        if not self._limits_time:
            return f"it has not ended after {self._patience:g} seconds, or broken the process that renders it"
        return f"it has broken the process that renders it (exit code {code})"


def _read(process: subprocess.Popen[bytes]) -> Any:
    """Return the next message, or None where the process has ended."""
    assert process.stdout is not None
    size = process.stdout.read(_LENGTH_BYTES)
    content = process.stdout.read(int.from_bytes(size, "big")) if len(size) == _LENGTH_BYTES else b""
    try:
        return json.loads(content.decode("utf-8", "surrogatepass"))
    except ValueError:  # cut short
        return None


def _json(value: Any) -> str:
    # Letters as they are: of two surrogates side by side, JSON's escapes would make one character.
    return json.dumps(value, ensure_ascii=False)


def _batches(given: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for one in given:
        batch.append(one)
        size += len(one)
        if len(batch) == _BATCH or size > _BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _forget() -> None:
    """Leave the process to the parent of a fork: two that ask would get each other's answers."""
    global renderer
    renderer = Renderer()


renderer = Renderer()
atexit.register(lambda: renderer.end())
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
