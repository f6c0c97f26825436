"""Standard streams that are closed, narrow, full, or left by their readers: every command takes them as they are."""

import os
import subprocess
import sys

import pytest

from benchmarks.soak import ENVIRONMENT, ROOT

# Other tests of this process may have started JAX, whose threads a fork leaves behind; the child only begins a command.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
ALL_CLOSED = "<&- >&- 2>&-"
CLOSED = {"<&-": (0,), ">&-": (1,), "2>&-": (2,), ALL_CLOSED: (0, 1, 2)}
SHORT = ("--max_iters=2", "--warmup_iters=1", "--eval_interval=2", "--save_interval=2")
# Leaves its output without a reader behind the first step, whose row is the first that can't be written.
READER_GOES = """
import os, signal
from jaxgpt.train.progress_line import ProgressLine
signal.signal(signal.SIGHUP, signal.{hangup})
first = ProgressLine.first_step
def then_alone(*args):
    first(*args)
    os.dup2({write}, 1)
ProgressLine.first_step = then_alone
from jaxgpt.cli.entry import train; train()
"""


@pytest.fixture(scope="session")
def commands(workshop, whole, tmp_path_factory):
    """A command line of each command that prints something and ends well, wherever it is called; in a new folder."""

    def words(command):
        run, dest = str(workshop.folder / whole), str(tmp_path_factory.mktemp("dest") / "new")
        return {
            "train": ["train.py", *workshop.argv(dest, *SHORT)],
            "generate": ["generate.py", "--init_from", run, "--max_new_tokens=4", "--num_samples=2"],
            "convert": ["convert_weights.py", run, dest],
        }[command]

    return words


def call(argv, *, closed=(), **options):
    """Run a script, with some of its standard streams closed."""

    def close() -> None:
        for number in closed:
            os.close(number)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    env = {**os.environ, **ENVIRONMENT, **streams.pop("env", {})}
    return subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, preexec_fn=close, timeout=120, **streams)


def gone():
    """Return the end to write to of a pipe that nobody reads, as behind `| head`."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize(
    ("command", "how"), [*(("convert", how) for how in CLOSED), ("train", ALL_CLOSED), ("generate", ALL_CLOSED)]
)
def test_a_closed_stream_changes_nothing_else(commands, command, how):
    done = call(commands(command), closed=CLOSED[how])
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (1 not in CLOSED[how])


@pytest.mark.parametrize("command", ["train", "generate", "convert"])
def test_a_reader_that_goes_ends_a_command_without_a_word(commands, command):
    write = gone()
    done = call(commands(command), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("hangup", "steps"), [("SIG_DFL", 2), ("SIG_IGN", 20)], ids=["saved", "nohup"])
def test_a_run_whose_reader_goes_is_saved_and_under_nohup_goes_on(workshop, hangup, steps):
    write = gone()
    argv = ["-c", READER_GOES.format(hangup=hangup, write=write), *workshop.argv(f"unread-{hangup}")]
    done = call(argv, pass_fds=[write])
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert workshop.steps(f"unread-{hangup}")[-1] == steps


@pytest.mark.parametrize("command", ["train", "generate", "convert"])
def test_a_full_disk_behind_the_output_is_a_line(commands, command):
    with open("/dev/full", "wb") as full:
        done = call(commands(command), stdout=full)
    assert (done.returncode, done.stderr) == (1, b"error: standard output: No space left on device\n")


FAILS = """
import sys, threading, types, jax
from jaxgpt.cli import entry
from jaxgpt.command_line import command
from jaxgpt.errors import RunError
from jaxgpt.progress import Compiled
@command
def main(argv):
    print("begun", end="")
    endless = types.SimpleNamespace(lower=lambda: threading.Event().wait())
    Compiled("the step", endless).begin()
    raise RunError("it failed")
sys.modules["failing"] = types.SimpleNamespace(main=main)
entry.run("failing")
"""


def test_a_run_that_fails_does_not_wait_for_what_is_compiled_beside():
    done = call(["-c", FAILS])
    assert (done.returncode, done.stdout, done.stderr) == (1, b"begun", b"error: it failed\n")


PRINT = """
import sys
from jaxgpt.cli.entry import open_streams
open_streams()
print("caf\\u00e9 \\u2603 \\udcff", sys.stdout.errors)
print("\\u2603", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"caf\xe9 \u2603 \udcff backslashreplace"),
        ("latin-1", b"caf\xe9 \\u2603 \\udcff backslashreplace"),
        ("utf-8", "café ☃ \\udcff backslashreplace".encode()),
        ("ascii:replace", b"caf? ? ? replace"),
        ("utf-8:surrogateescape", "café ☃ \\udcff backslashreplace".encode()),
    ],
)
def test_what_an_encoding_lacks_is_shown_by_its_number(encoding, shown):
    done = call(["-c", PRINT], env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stdout == shown + b"\n"


def test_a_finished_run_prints_a_sample_of_letters_that_an_ascii_locale_lacks(workshop, tmp_path):
    (tmp_path / "snow.txt").write_text("☃é☂ü☃☂é" * 200, encoding="utf-8")
    words = workshop.argv("snow", *SHORT, f"--dataset={tmp_path / 'snow.txt'}", "--sample_tokens=20")
    done = call(["train.py", *words], env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u26" in done.stdout and done.stdout.isascii()


def test_a_file_never_takes_a_closed_streams_number():
    """Lest what libraries print on standard error be written into it."""
    code = "from jaxgpt.cli.entry import open_streams; open_streams(); f = open('/dev/null'); import os, sys\n"
    code += "os._exit(f.fileno())"
    assert call(["-c", code], closed=(0, 1, 2)).returncode > 2


def test_a_prompt_from_a_closed_standard_input_is_an_error(commands):
    done = call([*commands("generate"), "--start=-"], closed=(0,))
    assert (done.returncode, done.stderr) == (2, b"error: --start -: standard input is closed\n")
