"""`generate.py` in a terminal without a prompt: a chat with a model that has a chat template, else line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from types import FrameType

from jaxgpt.cli.generate import Opened, Options, how, note_special, respond
from jaxgpt.cli.speed import Steps
from jaxgpt.decode.dialogue import Chat
from jaxgpt.errors import UsageError, report
from jaxgpt.signals import heard
from jaxgpt.visible import visible

PROMPT = "> "
WAKE = 0.1
"""Seconds in which an interrupt is seen, if it comes while a line is waited for."""
CHAT = "A chat: /reset forgets what was said, Ctrl-C stops an answer, Ctrl-D leaves."
LINES = "What you type is continued, an empty line begins anew. Ctrl-C stops, Ctrl-D leaves; --start asks once."


class Terminal:
    """Reads lines and prints what a model makes of them, until Ctrl-D."""

    def __init__(self, options: Options, model: Opened) -> None:
        """Take the command's flags and the model.

        Raises:
            UsageError: a flag that has no meaning in a chat.
        """
        self._options, self._model = options, model
        self._stopped = self._reading = False
        self._prompts = 0
        self._turns = count()
        self._chat: Chat | None = None
        if model.template is None:
            return
        for name in ("num_samples", "verbose", "allow_special"):
            if (value := getattr(options, name)) != getattr(Options, name):
                raise UsageError(f"--{name} {value}: not in a chat; with --start, a prompt is answered once")
        self._chat = Chat(
            model.config,
            model.params,
            model.tokenizer,
            system=options.system,
            template=model.template,
            max_new_tokens=options.max_new_tokens,
            stop=options.stop or (),
            truncate=options.truncate,
            draft=model.draft,
            **how(options, model.tokenizer),
        )

    def converse(self) -> None:
        """Answer line after line."""
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  gives `input` its history and its keys
        print(LINES if self._chat is None else CHAT)
        # To the end of the process: the thread that listens for interrupts may hear the last one late.
        signal.signal(signal.SIGINT, self._interrupt)
        with heard(self._wake):
            while (line := self._read()) is not None:
                try:
                    self._answer(line)
                except UsageError as error:
                    report(error)

    def _read(self) -> str | None:
        """Return the next line; None when there are no more."""
        while True:
            self._prompts += 1
            self._stopped, self._reading = False, True
            try:
                return input(PROMPT)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
            except UnicodeDecodeError as error:
                report(UsageError(f"what was typed is not UTF-8: {error}"))
            finally:
                self._stopped = self._reading = False

    def _answer(self, line: str) -> None:
        if self._chat is None:
            seed = (self._options.seed + next(self._turns)) % 2**32
            respond(dataclasses.replace(self._options, seed=seed), self._model, line, self._until_stopped)
        elif line.strip() == "/reset":
            self._chat.reset()
            print("Nothing was said yet.")
        elif line.startswith("/") and len(line.split()) == 1:
            raise UsageError(f"{line}: there is only /reset; Ctrl-D leaves")
        elif line.strip():
            note_special(self._model.tokenizer, line, "--chat off --allow_special")
            for piece in self._chat.ask(line):
                print(visible(piece), end="", flush=True)
                if self._stopped:
                    break
            print()

    def _until_stopped(self, steps: Steps) -> Iterator[list[int | None]]:
        for step in steps:
            if self._stopped:
                return
            yield step

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Stop the answer, or take back what is being typed: only there raising is safe, with none of JAX's below."""
        self._stopped = True
        if self._reading:
            raise KeyboardInterrupt

    def _wake(self, number: int) -> None:
        """Interrupt reading once more: a signal that comes while a key is taken is not seen before the next key."""
        prompt = self._prompts
        time.sleep(WAKE)
        if self._reading and not self._stopped and self._prompts == prompt and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
