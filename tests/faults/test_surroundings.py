"""Where a run lives and on what: folders, locks, devices, dashboards; and data or flags that have changed since."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from benchmarks.soak import QUICK
from jaxgpt.cli import train
from jaxgpt.runs.manifest import read_manifest
from tests.processes import end

AT_STEP_6 = """
import os, sys
from jaxgpt import train
run = train.run
def watched(*args, **kwargs):
    for done, state, metrics in run(*args, **kwargs):
        if done == 6:
            {change}
        yield done, state, metrics
train.run = watched
"""
EXHAUST = """
import jax
from jaxgpt import train
run = train.run
def exhausted(step, *args, **kwargs):
    def update(state, batch):
        if int(state.step) == {step}:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes\\nand much more")
        return step(state, batch)
    return run(update, *args, **kwargs)
train.run = exhausted
"""
DEVICES = "--xla_force_host_platform_device_count="


def fails(capsys, *argv: str) -> str:
    """Run train.py's main to its error of usage."""
    with pytest.raises(SystemExit) as caught:
        train.main(list(argv))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture(scope="session")
def busy(workshop, tmp_path_factory):
    """A process that trains in the folder `busy`, whose name has spaces and more, by way of a link to it."""
    real = tmp_path_factory.mktemp("the real one, für später")
    (workshop.folder / "busy ✓").symlink_to(real)
    long = (f"--{name}=100000000" for name in ("max_iters", "eval_interval", "save_interval"))
    process = workshop.start("busy ✓", "--log_interval=100", *long)
    lines = []
    try:
        while "step 100/" not in (lines or [""])[-1]:
            lines.append(process.stdout.readline())
            assert process.poll() is None, process.stderr.read()
        yield process
    finally:
        end(process)
        process.communicate()


def test_a_second_process_is_refused_by_the_first_ones_name(workshop, busy, capsys):
    for flags in (["--init_from=auto"], ["--init_from=resume"], ["--overwrite"], []):
        error = fails(capsys, *workshop.argv("busy ✓", *flags))
        assert f"is in use by process {busy.pid} on " in error
    assert busy.poll() is None


def test_a_run_is_stopped_and_resumed_in_a_linked_folder_with_spaces_by_a_relative_path(workshop, busy):
    busy.send_signal(signal.SIGTERM)
    output, errors = busy.communicate(timeout=30)
    assert busy.returncode == 0, errors
    last = workshop.steps("busy ✓")[-1]
    assert f"stopped and saved at step {last}" in output
    relative = os.path.relpath(workshop.folder / "busy ✓", train.__file__.split("jaxgpt/cli")[0])
    code, output, errors = workshop.train(
        "busy ✓", f"--out_dir={relative}", "--init_from=resume", f"--max_iters={last + 3}", "--eval_interval=4"
    )
    assert code == 0, errors
    assert f"step {last + 3}/{last + 3}" in output and f"step {last}/" not in output
    assert "max_iters was 100000000 when this run began" in output


def test_a_run_is_not_begun_where_another_one_is(workshop, whole, capsys):
    error = fails(capsys, *workshop.argv(whole))
    assert "holds a run; continue it with --init_from resume" in error
    (workshop.folder / "half").mkdir()
    shutil.copytree(workshop.folder / whole / "checkpoints", workshop.folder / "half" / "checkpoints")
    assert "holds a run" in fails(capsys, *workshop.argv("half")), "also where its record is missing"


def test_a_run_whose_folder_is_moved_says_so_and_does_not_make_it_again(workshop, whole):
    run, moved = workshop.folder / "here", workshop.folder / "there"
    before = AT_STEP_6.format(change=f"os.rename({str(run)!r}, {str(moved)!r})")
    code, _, errors = workshop.train("here", "--tensorboard", before=before)
    assert code == 1
    assert errors == f"error: {run} was moved or removed while this run wrote into it; nothing more is saved\n"
    assert not run.exists()
    code, _, errors = workshop.train("there", "--init_from=resume")
    assert code == 0, errors
    workshop.assert_equal("there", whole)


def test_a_command_that_fails_leaves_no_folder(workshop, capsys):
    for flags in (["--tokenizer=gpt3"], ["--block_size=9999999"], ["--fsdp=4"]):
        fails(capsys, *workshop.argv("made/for it", *flags))
        assert not (workshop.folder / "made").exists()


def test_a_file_is_no_folder(workshop, capsys):
    assert "it must be a folder that can be written to" in fails(capsys, *workshop.argv("text.txt"))


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--n_embd=32"], "n_embd is 32, was 16"),
        (["--dropout=0.2"], "resid_pdrop is 0.2, was 0.1"),
        (["--preset=gpt2"], "preset is gpt2, was None"),
    ],
)
def test_what_does_not_fit_the_run_is_named_field_by_field(workshop, whole, capsys, flags, difference):
    error = fails(capsys, *workshop.argv(whole, "--init_from=resume", "--max_iters=30", *flags))
    assert f"{workshop.folder / whole} does not fit what is asked: " in error and difference in error


def test_a_changed_text_is_noticed(workshop, whole, capsys):
    other = workshop.folder / "other.txt"
    other.write_text((workshop.folder / "text.txt").read_text()[::-1])
    error = fails(capsys, *workshop.argv(whole, "--init_from=resume", "--max_iters=30", f"--dataset={other}"))
    assert "asked: train is " in error and "; val is " in error and "--ignore_data_change" in error


def test_a_changed_tokenizer_is_noticed(workshop, whole, capsys):
    run = shutil.copytree(workshop.folder / whole, workshop.folder / "other tokenizer")
    chars = json.loads((run / "chars.json").read_text())["chars"]
    (run / "chars.json").write_text(json.dumps({"chars": chars[:-1] + "\U0001f600"}))
    error = fails(capsys, *workshop.argv(run, "--init_from=resume", "--max_iters=30"))
    assert "tokenizer is " in error


def test_a_run_goes_on_on_other_devices(workshop, whole):
    """4 devices, then 1, then 2 that share the weights: the same run within what sums in another order differ by."""
    for flags, devices in ((["--max_iters=8", "--fsdp=2"], 4), (["--max_iters=14", "--fsdp=1"], 1), (["--fsdp=2"], 2)):
        code, output, errors = workshop.train(
            "devices", "--init_from=auto", "--lr_decay_iters=20", *flags, XLA_FLAGS=f"{QUICK} {DEVICES}{devices}"
        )
        assert code == 0, errors
        assert f"parameters on {devices} x cpu" in output
    ours, theirs = (
        {row["step"]: row["loss"] for row in workshop.rows(out) if row["split"] == "train"}
        for out in ("devices", whole)
    )
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), atol=1e-4)


def test_a_batch_that_devices_can_not_share_is_refused_with_those_that_they_can(workshop):
    code, _, errors = workshop.train("uneven", "--batch_size=6", XLA_FLAGS=DEVICES + "4")
    assert code == 2
    assert errors == "error: batch_size 6 can't be divided among 4 devices; nearest are 4 and 8\n"


def test_a_dashboard_that_is_missing_is_warned_of_once_and_a_data_file_that_is_cut_ends_the_run(workshop):
    """Reading past the new end of a mapped file would kill the process without a word."""
    workshop.train("tokens", "--dry_run")  # fills the cache
    tokens = next((workshop.folder / "cache" / "corpora").glob("text.txt-*"))
    data = shutil.copytree(tokens, workshop.folder / "data")
    code, _, errors = workshop.train(
        "shrunk",
        f"--dataset={data}",
        "--wandb=test",
        before=AT_STEP_6.format(change=f"os.truncate({str(data / 'train.bin')!r}, 1000)"),
    )
    warning, error = errors.splitlines()
    assert code == 1
    assert warning.startswith("warning: wandb could not be started and is off: ")
    assert error.startswith(f"error: {data / 'train.bin'}: changed while in use (36000 bytes at start, 1000 now)")
    code, _, errors = workshop.train("shrunk", "--init_from=auto", f"--dataset={data}")
    assert code == 2 and "train.bin: 1000 bytes, but its sidecar says 18000 ids" in errors, "and so does the next start"


def test_a_device_that_is_not_there_is_named(workshop):
    code, _, errors = workshop.train("nowhere", "--device=cuda")
    assert code == 2 and errors.splitlines()[-1].startswith("error: --device cuda: ")


def test_memory_that_runs_out_is_a_line_with_advice_and_costs_the_steps_since_the_last_checkpoint(workshop, whole):
    code, _, errors = workshop.train("memory", "--init_from=auto", before=EXHAUST.format(step=7))
    last = workshop.folder / "memory" / "checkpoints" / str(workshop.steps("memory")[-1])
    assert code == 1
    assert errors == (
        "error: out of device memory: RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes; try a smaller --batch_size"
        f" with more --gradient_accumulation_steps, or --remat; the last good checkpoint is {last}\n"
    )
    assert read_manifest(last).step == 5
    code, _, errors = workshop.train("memory", "--init_from=auto")
    assert code == 0, errors
    workshop.assert_equal("memory", whole)
