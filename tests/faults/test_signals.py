"""Ctrl-C at every moment of every command, and a terminal that is closed."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

from benchmarks.soak import ENVIRONMENT, ROOT
from jaxgpt import signals
from tests.processes import started

# Other tests of this process may have started JAX, whose threads a fork leaves behind; the child only begins a command.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
COMMANDS = {
    "train": ["train.py", "--out_dir={folder}/out"],
    "train sft": ["train.py", "sft", "--out_dir={folder}/out", "--base={folder}", "--dataset={folder}/none.jsonl"],
    "generate": ["generate.py", "--init_from={folder}"],
    "convert": ["convert_weights.py", "{folder}/none", "{folder}/dest"],
}
# Interrupts its own process as soon as it begins to import a module, and runs a script.
AT_IMPORT = """
import os, runpy, signal, sys
def watch(event, args):
    if event == "import" and args[0] == {name!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(watch)
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("module", ["argparse", "numpy", "numpy._core._multiarray_umath", "jax", "jaxlib._jax", "flax"])
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_imports_is_one_line_and_exit_code_130(tmp_path, command, module):
    argv = [word.format(folder=tmp_path) for word in COMMANDS[command]]
    code = AT_IMPORT.format(name=module, argv=argv)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


BUSY = """
import gc, hashlib, time
from jaxgpt.signals import interruptible
class Callback:
    def __del__(self):  # whatever is raised in it is lost
        time.sleep(30)
def compute():  # nothing of Python's runs until it is done, as in a compilation
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
def call_back():
    print("busy", flush=True)
    Callback()
with interruptible():
    {what}()
    print("swallowed")
"""


@pytest.mark.parametrize("what", ["compute", "call_back"])
def test_ctrl_c_is_heard_where_handlers_do_not_run_and_exceptions_are_lost(what):
    code = BUSY.format(what=what)
    with started(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == "busy\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "", "interrupted\n")


def test_helpers_leave_ctrl_c_to_the_process_that_started_them():
    """Also while they begin, before any code of ours."""
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with signals.shielded():
        helper = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert helper.stdout == "True\n" and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_run_is_one_line_or_a_saved_run(workshop):
    """Sent to the group of processes, as a terminal does, from when the first line of ours has run."""
    ready = "import sys; from jaxgpt.cli import entry; print('ready', flush=True)"
    ended = set()
    for number, moment in enumerate((0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4.5)):
        flags = ("--max_iters=100000", "--eval_interval=100000", "--save_interval=100000", "--log_interval=100000")
        argv = [sys.executable, "-c", f"{ready}; entry.train()", *workshop.argv(f"moment-{number}", *flags)]
        with started(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
        ) as process:  # fmt: skip
            assert process.stdout.readline() == "ready\n"
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGINT)
            output, errors = process.communicate(timeout=120)
        ended.add(process.returncode)
        if process.returncode == 0:
            assert "SIGINT: stopped and saved at step " in output and errors == ""
            assert workshop.steps(f"moment-{number}")[-1] > 0
        else:
            assert (process.returncode, errors) == (130, "interrupted\n"), f"after {moment} s: {output}"
    assert 130 in ended


def test_a_closed_terminal_is_a_signal_to_save(workshop):
    """Its output has nowhere to go then, and the terminal and the shell send SIGHUP, both of them."""
    ours, its = pty.openpty()
    argv = [sys.executable, str(ROOT / "train.py"), *workshop.argv("closed", "--max_iters=100000")]
    with started(
        argv, stdin=its, stdout=its, stderr=its, cwd=ROOT, env={**os.environ, **ENVIRONMENT},
        preexec_fn=lambda: fcntl.ioctl(its, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(its)
        seen = b""
        while not re.search(rb"\D([3-9]|\d\d+)/100000", seen):
            seen += os.read(ours, 1 << 16)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
    assert workshop.steps("closed")[-1] >= 3
    assert (workshop.folder / "closed" / "lock").read_text() == "", "it has left in order"


def test_an_interrupt_does_what_the_ends_of_blocks_do_even_where_one_fails(monkeypatch):
    def fail() -> None:
        raise OSError("no")

    def leave(code: int, line: str) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(signals, "leave", leave)
    done = []
    with signals.tidied(lambda: done.append("outer")), signals.on_interrupt(fail), pytest.raises(SystemExit) as ended:
        with signals.tidied(lambda: done.append("inner")):
            signals._interrupted(signal.SIGINT, None)
    assert ended.value.code == 130 and done == ["inner", "outer", "inner", "outer"]
    with pytest.raises(SystemExit):
        signals._interrupted(signal.SIGINT, None)
    assert len(done) == 4, "what has ended is left alone"


def test_a_system_without_these_signals_has_the_others(monkeypatch):
    monkeypatch.setattr(signals, "STOPS", (signal.SIGINT, signal.SIGTERM))
    with pytest.raises(SystemExit):
        signals.hang_up()
