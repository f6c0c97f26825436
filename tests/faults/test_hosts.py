"""A run of two processes on one machine: they do the same, stop at the same step, and end together."""

import json
import signal
import socket

import pytest

from jaxgpt.hf.convert import save_pretrained
from jaxgpt.runs.weights import load_params
from jaxgpt.tokenizers.tokenizer import load_tokenizer
from tests.processes import end

# What JAX and gloo say about themselves.
CHATTER = ("[Gloo]", "W0", "W1", "E0", "E1", "I0", "I1")


# Writes down, as the process ends, which rows it was given and which files it wrote.
WATCH = """
import atexit, json, os, sys
from jaxgpt.train import trainer
rows, written, put = set(), set(), trainer.put_batch
def watched_put(mesh, batch):
    rows.add(len(batch.tokens))
    return put(mesh, batch)
trainer.put_batch = watched_put
def watch(event, args):
    if event == "open" and isinstance(args[0], str) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        written.add(args[0])
sys.addaudithook(watch)
def tell():
    with open({folder!r} + "/watched-" + os.environ["JAX_PROCESS_ID"], "w") as file:
        json.dump([sorted(rows), sorted(written)], file)
atexit.register(tell)
"""
# JAX looks once a second whether a signal has come.
SLOWLY = """
import time
watched_run = train.run
def slowly(*args, **kwargs):
    for result in watched_run(*args, **kwargs):
        time.sleep(0.3)
        yield result
train.run = slowly
"""


@pytest.fixture(scope="session")
def train_on_two(workshop):
    """A function that runs processes of one run, two or more, and returns the exit code, output and errors of each."""

    def train(out, *flags, first=(), second=(), before="", before_first="", count=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = [
            workshop.start(
                out, "--distributed", *flags, *(second if number else first),
                before=before if number else before_first, JAX_PLATFORMS="cpu",
                JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(number),
            )
            for number in range(count)
        ]  # fmt: skip
        results = []
        try:
            for process in processes:
                output, errors = process.communicate(timeout=120)
                own = [line for line in errors.splitlines() if not line.startswith(CHATTER)]
                results.append((process.returncode, output, own))
        finally:
            for process in processes:
                end(process)
        return results

    return train


@pytest.fixture(scope="session")
def stopped(workshop, train_on_two, at_step):
    """A run of two processes, of which the second was told to stop, its last step, and which of them wrote of it.

    It goes on in one process, and then in four.
    """
    watch = WATCH.format(folder=str(workshop.folder))
    flags = ["--init_from=auto", "--lr_decay_iters=20"]
    told = f"{watch}{at_step(3, signal.SIGTERM)}{SLOWLY}"
    stop = train_on_two("two", *flags, "--fsdp=2", before=told, before_first=watch)
    step = workshop.steps("two")[-1]
    wrote = {path.name for path in (workshop.folder / "two" / "checkpoints" / str(step) / "params").glob("ocdbt.p*")}
    one = workshop.train("two", *flags, "--fsdp=1", "--distributed=false", "--max_iters=12")
    return stop, step, wrote, [one, *train_on_two("two", *flags, "--fsdp=2", "--explore", count=4)]


@pytest.mark.slow
def test_all_stop_at_one_step_when_one_is_told_to_and_the_run_goes_on_in_any_number_of_processes(
    workshop, whole, stopped
):
    stop, step, _, rest = stopped
    assert [code for code, *_ in stop + rest] == [0] * 7, stop + rest
    assert 3 <= step < 12
    assert f"stopped and saved at step {step};" in stop[0][1]
    for (_, output, _), first in zip(rest, (step, 12), strict=False):
        assert f"step {first + 1}/" in output and f"step {first}/" not in output
    ours, theirs = workshop.rows("two"), workshop.rows(whole)
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-4)


@pytest.mark.slow
def test_the_first_process_speaks_for_all(workshop, stopped):
    stop, _, _, rest = stopped
    assert "parameters on 2 x cpu" in stop[0][1]
    assert f"page:  {workshop.folder / 'two' / 'explore.html'};" in rest[1][1]
    silent = [line for _, output, _ in (stop[1], *rest[2:]) for line in output.splitlines()]
    assert all(line.startswith(CHATTER) for line in silent)


@pytest.mark.slow
def test_each_process_reads_its_own_rows_and_writes_its_own_parts_of_checkpoints_alone(workshop, stopped):
    wrote = stopped[2]
    assert wrote == {"ocdbt.process_0", "ocdbt.process_1"}
    (rows, files), (others, none) = (
        json.loads((workshop.folder / f"watched-{number}").read_text()) for number in (0, 1)
    )
    assert rows == others == [2, 4], "half of an evaluation's 4, and of an update's 8"
    run = str(workshop.folder / "two")
    assert any(file.endswith("metrics.jsonl") for file in files)
    assert [file for file in none if file.startswith(run) and "/checkpoints/" not in file] == []


@pytest.mark.slow
def test_a_run_of_two_begins_with_a_model(workshop, whole, train_on_two):
    """From the folder of a run, and of weights as Hugging Face's are: the first loss is that of the model."""
    folder = workshop.folder / whole
    config, params = load_params(folder)
    save_pretrained(workshop.folder / "weights", config, params)
    load_tokenizer(folder).save(workshop.folder / "weights")
    for source in (folder, workshop.folder / "weights"):
        results = train_on_two(f"from-{source.name}", f"--init_from={source}", "--max_iters=2")
        assert [code for code, *_ in results] == [0, 0], results
        assert workshop.steps(f"from-{source.name}")[-1] == 2
    # Exported weights have biases, if only zeros, which the run's model has not: later steps differ.
    ours, theirs = (workshop.rows(f"from-{name}")[:2] for name in (whole, "weights"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-6)


OTHER_VERSION = """
from jaxgpt.stages import base
versions = base.versions
base.versions = lambda: {**versions(), "jax": "0.1"}
"""


def test_processes_that_would_not_do_the_same_are_refused(workshop, train_on_two):
    text = (workshop.folder / "text.txt").read_text()
    (workshop.folder / "other.txt").write_text(text[1:] + text[0])
    second = ["--seed=7", f"--dataset={workshop.folder / 'other.txt'}"]
    for code, _, errors in train_on_two("differ", second=second, before=OTHER_VERSION):
        assert code == 2 and len(errors) == 1
        said = "error: process 1 of this run does not do the same: seed is 7, and 1337 in process 0; jax is 0.1, and "
        assert errors[0].startswith(said) and "; the hash of train is " in errors[0]


def test_a_folder_that_is_not_shared_is_refused(workshop, train_on_two):
    """As on hosts with disks of their own, where no checkpoint would ever be whole."""
    places = [f"--out_dir={workshop.folder / name}" for name in ("first-disk", "second-disk")]
    for place, (code, _, errors) in zip(
        places, train_on_two("apart", first=places[:1], second=places[1:]), strict=True
    ):
        said = "what process 0 of this run writes there is not seen by 1; it must be a folder on a disk that all "
        assert (code, errors) == (2, [f"error: {place.replace('=', ' ')}: {said}processes share"])
    assert not [place for place in ("first-disk", "second-disk") if (workshop.folder / place).exists()]


def test_an_error_of_one_process_ends_the_others_with_its_reason(train_on_two):
    (one, _, theirs), (two, _, ours) = train_on_two("alone", second=["--dataset=/no/such/file"])
    assert (one, two) == (1, 2)
    assert theirs[0].startswith("error: process 1 of this run ended: dataset '/no/such/file': no such file or folder")
    assert ours[0].startswith("error: dataset '/no/such/file': no such file or folder")


@pytest.mark.slow
def test_a_first_process_that_is_lost_ends_the_others(train_on_two, at_step):
    (one, *_), (two, *_) = train_on_two("lost-first", before_first=at_step(7, signal.SIGKILL))
    assert one == -signal.SIGKILL and two not in (0, None)


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_others_and_names_the_last_checkpoint(workshop, train_on_two, at_step):
    (one, _, errors), (two, *_) = train_on_two("lost", before=at_step(7, signal.SIGKILL))
    assert (one, two) == (1, -signal.SIGKILL)
    assert errors[-1].startswith("error: another process of this run, or the network, failed: ")
    assert f"the last good checkpoint is {workshop.folder / 'lost' / 'checkpoints'}" in errors[-1]


RAISE = """
from jaxgpt.train.trainer import Trainer
def start(*_):
    {what}
Trainer.start = start
"""
BUG = RAISE.format(what="raise ValueError('a bug')")
INTERRUPT = RAISE.format(what="import os, signal; os.kill(os.getpid(), signal.SIGINT)")
COMPILE = RAISE.format(what="import time; print('compiling', flush=True); time.sleep(600)")


@pytest.mark.slow
@pytest.mark.parametrize(("culprit", "at_work"), [(0, COMPILE), (1, "")], ids=["0-compiling", "1-waiting"])
def test_an_error_of_any_kind_ends_the_others_with_its_reason_wherever_they_are(train_on_two, culprit, at_work):
    """Within 15 seconds, in which the one waits whether they all meet the same."""
    codes = (BUG, at_work) if culprit == 0 else (at_work, BUG)
    results = train_on_two(f"bug-{culprit}", "--overwrite", before_first=codes[0], before=codes[1])
    for number, (code, _, errors) in enumerate(results):
        assert code == 1
        if number == culprit:
            assert errors[0].startswith("Traceback") and errors[-1] == "ValueError: a bug"
        else:
            assert errors == [f"error: process {culprit} of this run ended: ValueError: a bug"]


@pytest.mark.slow
def test_ctrl_c_in_one_before_its_first_step_ends_the_others_too(train_on_two):
    (one, _, theirs), (two, _, ours) = train_on_two("interrupted", before=INTERRUPT, before_first=COMPILE)
    assert (one, theirs) == (1, ["error: process 1 of this run ended: interrupted"])
    assert (two, ours) == (130, ["interrupted"])
