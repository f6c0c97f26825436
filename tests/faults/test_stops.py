"""Stops of every kind: the run goes on from the last checkpoint, and in the end nothing tells it from another."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from tests.processes import started

ROOT = Path(__file__).parents[2]
# Kills this process when a checkpoint's arrays are written and its manifest is not, so it is not renamed either.
IN_MID_SAVE = """
import os, signal
from jaxgpt.runs import checkpoint
write = checkpoint.write_manifest
def killed(folder, progress):
    if progress.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, progress)
checkpoint.write_manifest = killed
"""
# Kills it when a checkpoint is there and the row of the next step is about to be written.
AFTER_SAVE = """
import os, signal
from jaxgpt.train import metrics
from jaxgpt.runs.checkpoint import Checkpoints
written, write = [], metrics.MetricsLog.write
def save(self, state, progress, save=Checkpoints.save):
    save(self, state, progress)
    if progress.step == {step}:
        self.wait()
        written.append(progress.step)
def killed(self, *args, **values):
    if written:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *args, **values)
Checkpoints.save, metrics.MetricsLog.write = save, killed
"""


@pytest.fixture(scope="session")
def chain(workshop, at_step):
    """One run, stopped in five ways and begun each time by the same command; what each process left."""
    stops = {
        "SIGTERM": at_step(3, SIGTERM),
        "SIGINT": at_step(6, SIGINT),
        "kill -9 in mid-step": at_step(9, SIGKILL),
        "kill -9 in mid-save": IN_MID_SAVE.format(step=10),
        "kill -9 after a save": AFTER_SAVE.format(step=15),
        "nothing": "",
        "complete": "",
    }
    left = {}
    for name, before in stops.items():
        code, output, errors = workshop.train("chain", "--init_from=auto", before=before)
        folders = sorted(path.name for path in (workshop.folder / "chain" / "checkpoints").iterdir())
        left[name] = (code, output + errors, workshop.steps("chain"), folders)
    return left


def test_resumed_is_uninterrupted_bit_for_bit(workshop, whole, chain):
    """Through all stops: parameters, moments, counters, skipped and best steps, and every row of metrics."""
    workshop.assert_equal("chain", whole)
    assert workshop.steps("chain")[-1] == 20


@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 3), ("SIGINT", 6)])
def test_a_signal_ends_the_step_saves_and_exits_0(chain, name, step):
    code, text, steps, _ = chain[name]
    assert code == 0 and steps[-1] == step
    assert f"{name}: stopped and saved at step {step}; --init_from resume goes on from here" in text
    assert "curve: " in text


def test_kill_9_in_mid_step_costs_the_steps_since_the_last_checkpoint(chain):
    code, _, steps, _ = chain["kill -9 in mid-step"]
    assert code == -SIGKILL and steps[-1] in (6, 8), "8 is the best so far, and is written in the background"


def test_kill_9_in_mid_save_leaves_no_checkpoint_and_what_it_left_is_removed(chain):
    code, _, steps, folders = chain["kill -9 in mid-save"]
    assert code == -SIGKILL and steps[-1] == 8 and "10.orbax-checkpoint-tmp" in folders
    _, text, _, folders = chain["kill -9 after a save"]
    assert "10.orbax-checkpoint-tmp, left by a process that ended while it was saving" in text
    assert not any("orbax" in name for name in folders)


def test_kill_9_between_a_save_and_the_next_row_loses_nothing(chain):
    code, _, steps, _ = chain["kill -9 after a save"]
    assert code == -SIGKILL and steps[-1] == 15
    assert "step 16/20" in chain["nothing"][1] and "step 15/20" not in chain["nothing"][1]


def test_a_process_that_was_killed_is_named_by_the_next(chain):
    assert "ended without leaving" in chain["kill -9 in mid-save"][1]


def test_the_same_command_starts_resumes_and_says_that_the_run_is_complete(chain):
    assert "starting from scratch" in chain["SIGTERM"][1]
    code, text, *_ = chain["complete"]
    assert code == 0 and "is already done: step 20 of 20" in text


def test_a_second_signal_leaves_at_once_and_the_run_goes_on(workshop, whole, at_step):
    code, _, errors = workshop.train("twice", before=at_step(7, SIGTERM, SIGINT))
    assert code == 128 + SIGINT and "stopped at once; the last checkpoint is valid" in errors
    assert 0 <= workshop.steps("twice")[-1] <= 5
    code, _, errors = workshop.train("twice", "--init_from=resume")
    assert code == 0, errors
    workshop.assert_equal("twice", whole)


def test_a_cut_row_of_metrics_costs_nothing(workshop, whole):
    """Rows after the checkpoint are cut as well, and the run writes them again."""
    shutil.copytree(workshop.folder / whole, workshop.folder / "cut")
    for step in workshop.steps("cut")[1:]:
        shutil.rmtree(workshop.folder / "cut" / "checkpoints" / str(step))
    metrics = workshop.folder / "cut" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-9])
    code, _, errors = workshop.train("cut", "--init_from=resume")
    assert code == 0, errors
    workshop.assert_equal("cut", whole)


ENCODE = """
import sys, time
from jaxgpt.signals import interruptible
from jaxgpt.data import load_corpus
from jaxgpt.data.encoding import cutting, growing, workers
slow = workers._encode
def wait(*args):
    print("encoding", flush=True)
    time.sleep({seconds})
    return slow(*args)
cutting._CHUNK, growing._KEEP_EVERY, workers._encode = 500, 0.0, wait
with interruptible():
    load_corpus(sys.argv[1], {tokenizer!r}, cache_dir=sys.argv[2], block_size=8)
"""


def encode(
    tmp_path: Path, *, seconds: float, words: str = "some words\n", tokenizer: str = "gpt2"
) -> AbstractContextManager[subprocess.Popen[str]]:
    path = tmp_path / f"{words.split()[0]}.txt"
    path.write_text(words * 100)
    code = ENCODE.format(seconds=seconds, tokenizer=tokenizer)
    argv = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    return started(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def unfinished(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "corpora").glob(".*/"))


def test_ctrl_c_while_encoding_exits_130_and_leaves_nothing_that_is_of_no_use(tmp_path):
    with encode(tmp_path, seconds=60) as process:
        assert process.stdout.readline() == "encoding\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.strip() == "interrupted"
    assert list((tmp_path / "cache" / "corpora").iterdir()) == []


def test_ctrl_c_while_encoding_says_that_the_same_command_goes_on(tmp_path):
    with encode(tmp_path, seconds=0.3, words="some longer words\n") as process:
        assert process.stdout.readline() == process.stdout.readline() == "encoding\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted; what was encoded is kept, and the same command goes on from there\n"
    assert len(unfinished(tmp_path)) == 1
    with encode(tmp_path, seconds=0, words="some longer words\n") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and output.count("encoding") < 4
    assert "tokens are there already, encoded by an earlier run that was stopped" in errors
    assert unfinished(tmp_path) == []


def test_another_process_waits_and_goes_on_with_what_one_that_is_killed_leaves(tmp_path):
    with encode(tmp_path, seconds=60, tokenizer="char") as killed:
        assert killed.stdout.readline() == "encoding\n"
        with encode(tmp_path, seconds=0, tokenizer="char") as beside:
            assert "waiting for another process, which encodes the same text" in beside.stderr.readline()
            assert len(unfinished(tmp_path)) == 1
            killed.kill()
            assert "encoding" in beside.communicate(timeout=60)[0]
    assert beside.returncode == 0 and unfinished(tmp_path) == []


def test_of_what_kill_9_while_encoding_leaves_the_last_is_kept(tmp_path):
    left = []
    for words in ("first words\n", "second words\n", "third words\n"):
        with encode(tmp_path, seconds=60, words=words, tokenizer="char") as killed:
            assert killed.stdout.readline() == "encoding\n"
            left.append(unfinished(tmp_path))
            killed.kill()
    assert [len(places) for places in left] == [1, 2, 2]
    assert left[0][0] in left[1] and left[0][0] not in left[2]


HELP = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from jaxgpt.data.encoding.workers import _follow_parent
pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 60)
time.sleep(60)
"""


def test_helpers_end_with_a_process_that_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", HELP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        helper = Path("/proc") / process.stdout.readline().strip()
        process.kill()
    for _ in range(100):
        if not helper.exists() or "State:\tZ" in (helper / "status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{helper} is still at work")
