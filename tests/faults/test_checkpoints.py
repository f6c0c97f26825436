"""Damaged, foreign and unfinished things among the checkpoints, and a disk that is full."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxgpt.errors import UsageError
from jaxgpt.runs.manifest import latest
from jaxgpt.runs.weights import load_params


def damage(checkpoint: Path) -> None:
    """Turn one bit in the largest file of the weights."""
    file = max(
        (path for path in (checkpoint / "params").rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)


@pytest.fixture(scope="session")
def mended(workshop, whole):
    """A finished run among whose checkpoints lie a damaged one and things of others, after it was resumed."""
    run = shutil.copytree(workshop.folder / whole, workshop.folder / "mended")
    folder = run / "checkpoints"
    damage(folder / "20")
    (folder / "25").mkdir()
    (folder / "tmp").mkdir()
    (folder / ".DS_Store").write_bytes(b"\0")
    shutil.copytree(folder / "20" / "params", folder / "21.orbax-checkpoint-tmp" / "params")
    code, output, errors = workshop.train("mended", "--init_from=auto")
    assert code == 0, errors
    return output, errors


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(workshop, whole, mended):
    folder = workshop.folder / "mended" / "checkpoints"
    output, errors = mended
    assert f"warning: checkpoint {folder / '20'} is damaged" in errors and "falling back" in errors
    assert f"warning: {folder / '20'} is now {folder / '20.old-1'}" in errors
    assert "warning" not in output
    workshop.assert_equal("mended", whole)


def test_a_checkpoint_that_is_asked_for_by_its_step_is_not_replaced_by_another(workshop, whole, tmp_path):
    run = shutil.copytree(workshop.folder / whole, tmp_path / "run")
    damage(run / "checkpoints" / "20")
    with pytest.raises(UsageError, match="checkpoint .*20 is damaged: .* is missing or has changed"):
        load_params(run, 20)


def test_foreign_folders_are_neither_used_nor_in_the_way(workshop, mended):
    left = {path.name for path in (workshop.folder / "mended" / "checkpoints").iterdir()}
    assert {"tmp", ".DS_Store", "25.old-1"} <= left and "25" not in left


def test_what_was_being_saved_is_swept_and_reported(workshop, mended):
    assert "note: removing " in mended[0] and "21.orbax-checkpoint-tmp" in mended[0]
    assert not (workshop.folder / "mended" / "checkpoints" / "21.orbax-checkpoint-tmp").exists()


def test_where_every_checkpoint_is_damaged_nothing_is_begun_in_its_place(workshop, whole):
    run = shutil.copytree(workshop.folder / whole, workshop.folder / "ruined")
    for step in workshop.steps("ruined"):
        damage(run / "checkpoints" / str(step))
    for mode in ("auto", "resume"):
        code, _, errors = workshop.train("ruined", f"--init_from={mode}")
        *warnings, error = errors.splitlines()
        assert code == 2 and error == f"error: --init_from {mode}: every checkpoint in {run} is damaged"
        assert len(warnings) == len(workshop.steps("ruined")) and all(w.startswith("warning: ") for w in warnings)


def test_a_run_without_a_checkpoint_is_no_run_to_resume(workshop):
    code, _, errors = workshop.train("none", "--init_from=resume")
    assert code == 2 and f"{workshop.folder / 'none'} holds no run; begin one with scratch or auto" in errors


def test_time_saves_too(workshop):
    code, _, errors = workshop.train("late", "--save_minutes=1e-9", "--save_interval=100", "--keep=99", "--max_iters=4")
    assert code == 0, errors
    assert workshop.steps("late") == [0, 1, 2, 3, 4]


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a file system of its own at a new folder; not everyone may."""
    mounted = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_a_line_and_earlier_checkpoints_stay(workshop, mount):
    run = mount("size=1m") / "run"
    code, _, errors = workshop.train(run, "--keep=99", "--max_iters=2000", "--save_interval=1", "--log_interval=2000")
    assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1
    assert "o space left on device" in errors and "; the last good checkpoint is " in errors
    named = Path(errors.split("the last good checkpoint is ")[1].strip())
    assert latest(run).step == int(named.name) >= 1
    # Room is made, and the run goes on.
    last = int(named.name)
    for step in workshop.steps(run)[:-1]:
        shutil.rmtree(run / "checkpoints" / str(step))
    code, output, errors = workshop.train(run, "--init_from=auto", f"--max_iters={last + 3}", "--keep=1")
    assert code == 0, errors
    assert "note: removing" in output and latest(run).step == last + 3


def test_a_disk_full_from_the_start_is_a_line_too(workshop, mount):
    disk = mount("size=64k")
    (disk / "filler").write_bytes(bytes(60 * 1024))
    code, _, errors = workshop.train(disk / "run")
    assert code == 1 and errors.count("\n") == 1 and "No space left on device" in errors
    assert errors.startswith(f"error: {disk / 'run'}"), "the file or its folder is named"
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_file_system_that_is_read_only_is_refused_before_anything_is_compiled(workshop, mount):
    code, output, errors = workshop.train(mount("ro") / "run")
    assert code == 2 and "Read-only file system; it must be a folder that can be written to" in errors
    assert output == ""
