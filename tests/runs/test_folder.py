"""A run's folder: held by one process, never lost, and read back only when it is what it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import write_json
from jaxgpt.model.config import PRESETS, GPTConfig
from jaxgpt.runs import folder as folder_module
from jaxgpt.runs.folder import (
    FORMAT,
    hold,
    holds_run,
    lock,
    move_aside,
    named_run,
    read_record,
    write_record,
)
from jaxgpt.runs.manifest import Progress, write_manifest

HOLD = "import sys; from pathlib import Path; from jaxgpt.runs.folder import lock\n"
HOLD += "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(UsageError, match=f"in use by process {holder.pid} on "), lock(tmp_path):
        pass
    holder.communicate()
    with lock(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_file_that_is_deleted_frees_no_folder(tmp_path, holder):
    (tmp_path / "lock").unlink()
    with pytest.raises(UsageError, match="in use by another process"), lock(tmp_path):
        pass
    assert not (tmp_path / "lock").exists()
    holder.communicate()
    with lock(tmp_path):
        pass


def test_where_folders_have_no_locks_the_file_has_one(tmp_path, holder, monkeypatch, capsys):
    def files_only(descriptor, blocking):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(9, "Bad file descriptor")
        return filelock.lock_descriptor(descriptor, blocking=blocking)

    monkeypatch.setattr(folder_module, "lock_descriptor", files_only)
    with pytest.raises(UsageError, match=f"in use by process {holder.pid} on "), lock(tmp_path):
        pass
    holder.communicate()
    with lock(tmp_path):
        assert "can't be locked" not in capsys.readouterr().err


def test_a_process_that_dies_leaves_the_folder_free_and_is_named(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        assert f"note: process {holder.pid} on " in capsys.readouterr().out


def test_leaving_in_order_or_by_an_error_leaves_no_name(tmp_path, capsys):
    with lock(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        raise ZeroDivisionError
    with lock(tmp_path):
        assert capsys.readouterr().out == ""


def begin_run(path: Path, *, overwrite: bool = False) -> None:
    with hold(path, new=not overwrite):
        if holds_run(path):
            move_aside(path)
        write_record(path, GPTConfig())


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()} - {"lock"}


def test_a_folder_is_made_with_those_above_it(tmp_path):
    begin_run(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == {"config.json"}


@pytest.mark.parametrize("there", [None, "a", "a/b", "a/b/notes.txt"])
def test_a_run_that_does_not_begin_leaves_nothing_and_what_was_there_stays(tmp_path, there):
    if there is not None:
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).touch() if there.endswith(".txt") else (tmp_path / there).mkdir()
    before = sorted(tmp_path.rglob("*"))
    for error in (UsageError, KeyboardInterrupt):
        with pytest.raises(error), hold(tmp_path / "a" / "b", new=True):
            raise error("reason")
        assert sorted(tmp_path.rglob("*")) == before
    begin_run(tmp_path / "a" / "b")
    with pytest.raises(UsageError), hold(tmp_path / "a" / "b", new=False):
        raise UsageError("reason")
    assert (tmp_path / "a" / "b" / "config.json").exists(), "a run that has begun stays"


def test_another_ones_folder_in_the_place_of_a_moved_one_is_left_alone(tmp_path):
    with pytest.raises(RunError), hold(tmp_path / "run", new=True):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").touch()
        raise RunError
    assert (tmp_path / "run" / "notes.txt").exists()


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path):
    (tmp_path / ".config.json.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: .*/config.json'"):
        write_record(tmp_path, GPTConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_begun_over_another_one(tmp_path):
    begin_run(tmp_path)
    with pytest.raises(UsageError, match="holds a run.*--init_from resume.*--overwrite"):
        begin_run(tmp_path)
    with hold(tmp_path, new=False):
        assert read_record(tmp_path)["model"] == GPTConfig()


def test_nor_over_one_of_nanogpts_whose_tokenizer_it_would_change(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ckpt.pt").touch()
    with pytest.raises(UsageError, match="holds nanoGPT's ckpt.pt, which --init_from .*ckpt.pt --allow_pickle begins"):
        begin_run(tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir() if file.name != "lock"] == ["ckpt.pt"]
    begin_run(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run.old-1" / "ckpt.pt").exists()


def test_overwrite_moves_the_other_run_aside(tmp_path):
    for mark in ("first", "second", "third"):
        begin_run(tmp_path / "run", overwrite=True)
        (tmp_path / "run" / mark).touch()
    for folder, mark in (("run.old-1", "first"), ("run.old-2", "second"), ("run", "third")):
        assert names(tmp_path / folder) == {"config.json", mark}


def test_overwrite_does_not_move_a_run_away_under_the_process_that_trains_it(tmp_path, holder):
    write_record(tmp_path, GPTConfig())
    with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
        begin_run(tmp_path, overwrite=True)
    assert names(tmp_path) == {"config.json"}


def test_what_can_not_be_a_folder_to_write_to_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below", Path("/proc"), Path("/proc/run")):  # in /proc not even root may write
        with pytest.raises(UsageError, match=f"--out_dir {path}: .*; it must be a folder that can be written to"):
            begin_run(path)


@pytest.mark.parametrize("config", [*PRESETS.values(), GPTConfig(eos_token_id=(1, 2))], ids=str)
def test_a_record_is_read_as_it_was_written(tmp_path, config):
    write_record(tmp_path, config, flags={"seed": 3})
    record = read_record(tmp_path)
    assert (record["model"], record["flags"], record["format"]) == (config, {"seed": 3}, FORMAT)
    assert {"python", "jax", "jaxlib", "numpy"} <= set(record["versions"])


def change(**changes):
    def edit(record):
        return {**record, **changes}

    return edit


def change_model(**changes):
    def edit(record):
        model = {**record["model"], **changes}
        return {**record, "model": {key: value for key, value in model.items() if value != "absent"}}

    return edit


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (change(format=FORMAT + 1), f"has format {FORMAT + 1}; this version reads format {FORMAT}"),
        (lambda record: {"vocab_size": 3}, "names no format"),
        (lambda record: [record], "holds a list; it must be an object"),
        (change(model=None), "model: a table is missing"),
        (change_model(n_layer="absent"), r"model: \['n_layer'\]; it must have exactly the fields"),
        (change_model(n_layers=3), r"model: \['n_layers'\]; it must have exactly the fields"),
        (change_model(n_layer="many"), "model: n_layer is 'many'"),
        (change_model(n_layer=2**40), "model: n_layer is 1099511627776"),
    ],
)
def test_a_record_that_is_not_one_is_refused(tmp_path, edit, complaint):
    write_record(tmp_path, GPTConfig())
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edit(record)))
    with pytest.raises(UsageError, match=complaint) as refused:
        read_record(tmp_path, ignore_change=True)
    assert str(tmp_path / "config.json") in str(refused.value)
    with pytest.raises(UsageError, match="config.json"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [change_model(n_head=6), change_model(layer_norm_epsilon=0.1), change(flags={"seed": 4}), change(more=1)],
)
def test_a_changed_record_is_taken_only_if_that_is_asked_for(tmp_path, edit):
    write_record(tmp_path, GPTConfig(), flags={"seed": 3}, stage="pretrain", data={}, new=True)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record, indent=9))
    assert read_record(tmp_path)["flags"] == {"seed": 3}, "white space says nothing"
    (tmp_path / "config.json").write_text(json.dumps(edit(record)))
    with pytest.raises(UsageError, match="config.json has changed since it was written.* --ignore_config_change"):
        read_record(tmp_path)
    assert read_record(tmp_path, ignore_change=True)["stage"] == "pretrain"


def test_a_record_is_that_of_the_run_whose_checkpoints_lie_beside_it(tmp_path):
    """Also after the run went on with other flags, and where an earlier version wrote names of runs into neither."""
    one, other = tmp_path / "one", tmp_path / "other"
    for path, seed in ((one, 1), (other, 2)):
        (path / "checkpoints" / "5").mkdir(parents=True)
        write_record(path, GPTConfig(), seed=seed)
        write_manifest(path / "checkpoints" / "5", Progress(5, run=named_run(path / "config.json")))
    run = read_record(one)["run"]
    write_record(one, GPTConfig(), run=run, seed=3)
    assert read_record(one)["run"] == run
    shutil.copy(one / "config.json", other / "config.json")
    with pytest.raises(UsageError, match="is not the record of the run that made checkpoint 5 beside it"):
        read_record(other)
    assert read_record(other, ignore_change=True)["seed"] == 3
    write_manifest(other / "checkpoints" / "5", Progress(5))
    assert read_record(other)["seed"] == 3
    earlier = json.loads((one / "config.json").read_text())
    del earlier["run"], earlier["sha256"]
    (other / "config.json").write_text(json.dumps(earlier))
    assert read_record(other)["seed"] == 3
    (one / "config.json").write_text(json.dumps(earlier))
    with pytest.raises(UsageError, match="is not the record of the run"):
        read_record(one)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (change(stage=3), "stage is a int"),
        (change(flags=[]), "flags is a list"),
        (change(data="plays"), "data is a str"),
        (change(new=1), "new is a int"),
        (change(begun_from=None), "begun_from is a NoneType"),
        (change(lora=[1]), "lora is a list"),
        (change(base={}), "base is a dict"),
    ],
)
def test_entries_of_a_wrong_type_are_named(tmp_path, edit, complaint):
    write_record(tmp_path, GPTConfig())
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edit(record)))
    with pytest.raises(UsageError, match=f"config.json: {complaint}"):
        read_record(tmp_path, ignore_change=True)


@pytest.mark.parametrize("content", [b'{"format": 1, "mod', b"", b"\xff\xfe", b"[" * 10**5, b"9" * 5000])
def test_a_broken_record_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match="config.json: not (JSON|UTF-8)"):
        read_record(tmp_path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(UsageError, match="config.json: cannot be read: No such file"):
        read_record(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "file.json", {"value": 1})
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "file.json", {"before": "x" * 100_000, "value": bad})
    assert json.loads((tmp_path / "file.json").read_text()) == {"value": 1}
