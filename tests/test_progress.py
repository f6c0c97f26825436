import io
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.progress import Compiled, bar, compiling, say
from jaxgpt.train.progress_line import ProgressLine


class Terminal(io.StringIO):
    """A terminal, which keeps what it is written."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_for_terminals_and_leaves_nothing():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        assert list(bar("texts", range(3), file=stream, delay=0, mininterval=0)) == [0, 1, 2]
    assert file.getvalue() == ""
    assert "texts: 100%" in terminal.getvalue() and re.search(r"\r +\r$", terminal.getvalue())


def test_what_takes_long_to_compile_is_said_before_and_after_and_only_once(capsys):
    for slow in (True, False):
        with compiling("the step", after=0.1):
            time.sleep(0.2 * slow)
        out = capsys.readouterr().out
        assert re.fullmatch(r"compiling the step …\ncompiled the step in \d\.\d s\n" if slow else "", out)
    step = Compiled("the step", lambda seconds: time.sleep(seconds))
    step(1.1)
    assert capsys.readouterr().out.count("compil") == 2
    step(1.1)
    assert capsys.readouterr().out == ""


def test_a_call_waits_for_what_was_begun_and_says_itself_why_that_failed():
    def slow(x: jax.Array) -> jax.Array:
        traced.append(threading.current_thread())
        time.sleep(0.1)
        if x.ndim:
            raise ValueError("of no axis only")
        return 2 * x

    for good in (True, False):
        step, traced = Compiled("the step", jax.jit(slow)), []
        x = jnp.ones(() if good else 3)
        step.begin(x)
        if good:
            assert step(x) == 2 and len(traced) == 1 and traced != [threading.current_thread()]
        else:
            with pytest.raises(ValueError, match="of no axis only"):
                step(x)


def test_the_line_of_a_run_is_live_in_a_terminal_and_plain_elsewhere(monkeypatch, capsys):
    def shown() -> None:
        line = ProgressLine(step=0, until=4, tokens_per_step=8, flops_per_token=None)
        for step in range(1, 5):
            if step == 1:
                line.first_step(Ready())
            line.advance(step)
            if step == 2:
                line.show(step, "loss 1.0")
                say("step 2: val loss 2.0")
        line.close()

    shown()
    assert capsys.readouterr().out == "step 2/4 | loss 1.0\nstep 2: val loss 2.0\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    shown()
    pieces = terminal.getvalue().split("\r")
    assert any(re.fullmatch(r"step 2/4 \|.{12}\| loss 1\.0", piece.strip()) for piece in pieces)
    assert "step 2: val loss 2.0\n" in pieces and terminal.getvalue().count("\n") == 1


class Ready:
    """What an update gives, done already."""

    def block_until_ready(self) -> None:
        """Return at once."""
