"""`generate.py` without a prompt in a real terminal."""

import os
import pty
import select
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks.soak import ENVIRONMENT, ROOT
from jaxgpt.chat.template import DEFAULT_TEMPLATE, add_template
from jaxgpt.cli.generate import Opened, Options
from jaxgpt.cli.terminal import Terminal
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.weights import save_params
from jaxgpt.tokenizers import BPETokenizer

# Other tests of this process may have started JAX, whose threads a fork leaves behind; the child only begins a command.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
TOKENIZER = add_template(BPETokenizer.train([], 257), DEFAULT_TEMPLATE)
CONFIG = GPTConfig(TOKENIZER.vocab_size, 4096, 8, 1, 2, bos_token_id=None, eos_token_id=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A run's folder of an untrained model that never ends an answer."""
    folder = tmp_path_factory.mktemp("run")
    save_params(folder, CONFIG, GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    TOKENIZER.save(folder)
    return str(folder)


class Person:
    """Types into a terminal and reads from it."""

    def __init__(self, *flags: str) -> None:
        self.seen = ""
        self._ours, its = pty.openpty()
        # The shell's `login_tty`: Ctrl-C is a signal only in the terminal that controls the process.
        code = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from jaxgpt.cli import entry"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{code}; entry.generate()", *flags],
            stdin=its, stdout=its, stderr=its, cwd=ROOT, start_new_session=True,
            env={**os.environ, **ENVIRONMENT, "TERM": "dumb", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        os.close(its)

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def reads(self, text: str, *, more: int = 0) -> str:
        """Wait for a text, and for this many characters behind it; return all up to there, which is then forgotten."""
        end = time.monotonic() + 120
        while (at := self.seen.find(text)) < 0 or len(self.seen) < at + len(text) + more:
            assert time.monotonic() < end and select.select([self._ours], [], [], 60)[0], self.seen
            self.seen += os.read(self._ours, 1 << 16).decode(errors="replace")
        past = at + len(text) + more
        told, self.seen = self.seen[:past], self.seen[past:]
        return told


def test_a_chat_in_a_terminal(run):
    with Person("--init_from", run, "--max_new_tokens=3900", "--system=be brief", "--overflow=slide") as person:
        assert "A chat: /reset" in person.reads("\n> ")
        person.type("not thi\x03")
        person.reads("\n> ")  # Ctrl-C takes back what is being typed
        person.type("hello\n")
        person.reads("hello\r\n", more=40)
        person.type("\x03")  # and stops an answer of thousands of tokens
        assert len(person.reads("\n> ")) < 3000
        person.type("/rest\n")
        assert "error: /rest: there is only /reset" in person.reads("\n> ")
        person.type("/reset\n")
        assert "Nothing was said yet." in person.reads("\n> ")
        person.type("\x04")
        assert person.process.wait(timeout=30) == 0


def test_lines_are_continued_in_a_terminal(run):
    with Person("--init_from", run, "--chat=off", "--max_new_tokens=30") as person:
        assert "continued" in person.reads("\n> ")
        for line in ("To be", ""):
            person.type(f"{line}\n")
            assert line in person.reads("\n> ").removeprefix(line)
        person.type("\x04")
        assert person.process.wait(timeout=30) == 0


@pytest.mark.parametrize("flag", ["num_samples", "verbose", "allow_special"])
def test_what_has_no_meaning_in_a_chat_is_refused(flag):
    model = Opened(CONFIG, None, TOKENIZER, DEFAULT_TEMPLATE, None)
    with pytest.raises(UsageError, match=f"--{flag} .*: not in a chat"):
        Terminal(Options(**{flag: 2 if flag == "num_samples" else True}), model)
