"""Checkpoints: the bits that were saved, or a clear refusal; whatever else lies in their folder."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import sha256
from jaxgpt.runs import manifest
from jaxgpt.runs.checkpoint import Checkpoints, gigabytes_at_once, not_finite, sweep
from jaxgpt.runs.folder import FORMAT, write_record
from jaxgpt.runs.manifest import Progress, latest, read_manifest, steps
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.train.loop import run
from jaxgpt.train.state import TrainState


def assert_same_bits(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """A run with the checkpoints 1, 2 and 3, of which 2 is the best; to be copied and then damaged."""
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, tiny.config)
    checkpoints, progress = Checkpoints(folder, keep=9), Progress(0)
    for done, state, _ in run(tiny.step, tiny.begin(), tiny.batches, until=3):
        progress = Progress(done, progress.best_step, progress.best_loss).evaluated({1: 3.0, 2: 2.0, 3: 2.5}[done])
        checkpoints.save(state, progress)
    checkpoints.wait()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture(scope="session")
def states(tiny):
    """The states after 1, 2 and 3 updates."""
    return {done: jax.device_get(state) for done, state, _ in run(tiny.step, tiny.begin(), tiny.batches, until=3)}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_restored_is_what_was_saved_though_the_state_went_on_at_once(tiny, saved, states, step):
    """Saving returns before the files are written, and the next step takes over the state's memory."""
    assert_same_bits(Checkpoints(saved).restore(tiny.abstract, step), states[step])


def test_a_restored_state_lies_as_asked_and_may_be_donated(tiny, saved):
    restored = Checkpoints(saved).restore(tiny.abstract, 3)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, tiny.abstract)
    tiny.step(restored, tiny.batches(3))


def data_files(folder: Path, step: int, item: str = "params") -> list[Path]:
    """Return an item's files with the arrays in them, largest first."""
    found = (path for path in (folder / "checkpoints" / str(step) / item).rglob("d/*") if path.is_file())
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("item", ["params", "rest"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(tiny, folder, states, capsys, damage, item):
    damage(data_files(folder, 3, item)[0])
    assert latest(folder) == Progress(2, 2, 2.0)
    captured = capsys.readouterr()
    assert "warning: checkpoint" in captured.err and "falling back" in captured.err
    assert captured.out == "", "which may be a model's text"
    with pytest.raises(UsageError, match="3 is damaged: .* is missing or has changed"):
        Checkpoints(folder).restore(tiny.abstract, 3)
    if item == "rest":  # which is no part of the model
        assert_same_bits(load_params(folder, 3)[1], states[3].params)
        return
    with pytest.raises(UsageError, match="3 is damaged: .* is missing or has changed"):
        load_params(folder, 3)


def test_every_file_that_is_read_is_guarded(folder):
    for path in (folder / "checkpoints" / "3").glob("*/**/*"):  # those above are orbax's notes, and the manifest
        if path.is_file():
            before = path.read_bytes()
            path.write_bytes(before + b" ")
            with pytest.raises(UsageError, match="is damaged"):
                read_manifest(folder / "checkpoints" / "3")
            path.write_bytes(before)
    assert read_manifest(folder / "checkpoints" / "3") == Progress(3, 2, 2.0)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "files": 3}'])
def test_a_broken_manifest_is_damage(folder, content):
    (folder / "checkpoints" / "3" / "manifest.json").write_text(content)
    assert latest(folder) == Progress(2, 2, 2.0)


def test_another_format_is_refused_by_its_number(folder):
    file = folder / "checkpoints" / "3" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(UsageError, match=f"has format {FORMAT + 1}; this version reads format {FORMAT}"):
        load_params(folder, 3)


def test_where_all_are_damaged_there_is_none(folder):
    for step in (1, 2, 3):
        flip(data_files(folder, step)[0])
    assert latest(folder) is None
    with pytest.raises(UsageError, match="every checkpoint in .* is damaged"):
        load_params(folder)


def test_what_has_no_manifest_is_no_checkpoint(folder):
    for name in ("9", "tmp", "10.orbax-checkpoint-tmp", ".hidden"):
        (folder / "checkpoints" / name).mkdir()
    (folder / "checkpoints" / ".DS_Store").write_bytes(b"\0")
    shutil.copytree(folder / "checkpoints" / "3", folder / "checkpoints" / "3 (copy)")
    assert sorted(steps(folder)) == [1, 2, 3]
    assert latest(folder).step == 3
    assert latest(folder.parent) is None, "nor is a folder without checkpoints a run"


def test_what_a_process_left_while_saving_is_removed_and_reported(folder, capsys):
    stale = folder / "checkpoints" / "10.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / "3" / "params", stale / "params")
    sweep(folder, 3)
    assert not stale.exists() and sorted(steps(folder)) == [1, 2, 3]
    assert f"note: removing {stale}" in capsys.readouterr().out


def save_some(tiny, folder, keep, losses, first=1):
    checkpoints, progress = Checkpoints(folder, keep=keep), Progress(0)
    for step, loss in enumerate(losses, first):
        progress = Progress(step, progress.best_step, progress.best_loss).evaluated(loss)
        checkpoints.save(tiny.begin(), progress)
        checkpoints.wait()
    return sorted(steps(folder))


@pytest.mark.parametrize(
    ("keep", "losses", "left"),
    [
        (1, [3, 2, 1], [3]),
        (1, [1, 2, 3], [1, 3]),
        (2, [3, 1, 2, 3, 4], [2, 4, 5]),
        (2, [5, 4, 3, 2, 1], [4, 5]),
        (9, [1, 2], [1, 2]),
    ],
)
def test_the_last_ones_stay_and_the_best(tiny, tmp_path, keep, losses, left):
    assert save_some(tiny, tmp_path, keep, [float(loss) for loss in losses]) == left


def test_damaged_ones_ahead_of_the_run_do_not_crowd_out_whole_ones(tiny, folder):
    """A run that fell back from 3 to 1 saves below what it fell back from."""
    for step in (2, 3):
        flip(data_files(folder, step)[0])
    sweep(folder, latest(folder).step)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(tiny.begin().replace(step=jnp.ones((), jnp.int32)), Progress(1))
    checkpoints.wait()
    assert latest(folder) == Progress(1)
    assert {"2.old-1", "3.old-1"} <= {path.name for path in (folder / "checkpoints").iterdir()}, "nothing is deleted"


def spoiled(state: TrainState, where: str, value: float) -> TrainState:
    """Return a state with one value changed, the last one of the largest leaf of a part."""
    leaves, structure = jax.tree.flatten(getattr(state, where))
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    leaves[largest] = leaves[largest].reshape(-1).at[-1].set(value).reshape(leaves[largest].shape)
    return state.replace(**{where: structure.unflatten(leaves)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["params", "opt_state", "carried"])
def test_a_state_that_is_not_finite_is_not_saved_and_takes_no_others_place(tiny, rewarded, tmp_path, where, value):
    """Of every stage, and whether or not its last update was skipped; PPO's carries a number of its own."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for begin in (tiny.begin, rewarded.begin) if where != "carried" else (rewarded.begin,):
        checkpoints.save(begin(), Progress(1))
        for streak in (0, 2):
            state = spoiled(begin(), where, value).replace(streak=jnp.full((), streak, jnp.int32))
            with pytest.raises(RunError, match=f"step 2 is not finite, and not saved: {where}.* checkpoint is .*/1;"):
                checkpoints.save(state, Progress(2))
        assert steps(tmp_path) == [1]


def test_the_largest_tables_are_looked_through():
    """XLA:CPU's max and min drop a NaN in a large array."""
    table = jnp.ones((50257, 96))
    assert not_finite({"table": table}) == []
    for place in ((0, 0), (25000, 50), (50256, 95)):
        assert not_finite({"other": jnp.ones(3), "table": table.at[place].set(jnp.nan)}) == ["table"]


def test_states_whose_updates_are_skipped_take_no_other_ones_place(tiny, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, streak, left in ((1, 0, [1]), (2, 1, [1, 2]), (3, 2, [1, 2, 3]), (4, 0, [4])):
        checkpoints.save(tiny.begin().replace(streak=jnp.full((), streak, jnp.int32)), Progress(step))
        checkpoints.wait()
        assert sorted(steps(tmp_path)) == left


def test_another_folder_in_the_place_of_a_moved_one_is_left_alone(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "run")
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(RunError, match="run was moved or removed while this run wrote into it"):
        checkpoints.save(tiny.begin(), Progress(2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.filterwarnings("ignore")  # orbax leaves coroutines without a turn
def test_a_folder_that_is_moved_while_a_checkpoint_is_written_is_not_made_again(tiny, tmp_path):
    """Whatever the moment; what writes in the background makes missing folders."""
    for step in range(1, 4):
        (tmp_path / "run").mkdir()
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(tiny.begin(), Progress(step))
        time.sleep(0.01 * step)
        (tmp_path / "run").rename(tmp_path / f"moved {step}")
        with pytest.raises(RunError, match="run was moved or removed while this run wrote into it"):
            checkpoints.save(tiny.begin(), Progress(9))
        assert not (tmp_path / "run").exists()
        assert latest(tmp_path / f"moved {step}") in (None, Progress(step))


def test_a_folder_that_was_removed_is_not_made_again(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (1, 2):
        checkpoints.save(tiny.begin(), Progress(step))
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="run was moved or removed while this run wrote into it"):
        checkpoints.save(tiny.begin(), Progress(3))
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_may_be_saved_again(tiny, folder, states):
    checkpoints = Checkpoints(folder)
    checkpoints.save(jax.tree.map(jnp.asarray, states[1]), Progress(3))
    checkpoints.wait()
    assert latest(folder) == Progress(3)
    assert_same_bits(checkpoints.restore(tiny.abstract, 3), states[1])


def test_params_are_loaded_by_step_or_as_the_last_or_best(tiny, saved, states):
    for which, step in (("best", 2), ("last", 3), (1, 1)):
        config, params = load_params(saved, which)
        assert config == tiny.config
        assert_same_bits(params, states[step].params)
    with pytest.raises(UsageError, match=r"no checkpoint of step 7; there are \[1, 2, 3\]"):
        load_params(saved, 7)


@pytest.mark.usefixtures("unchecked_types")
def test_any_other_word_or_number_is_no_checkpoint(saved, states):
    for which in ("bst", "", 2.0, True, None, -1, [2]):
        with pytest.raises(UsageError, match="^which checkpoint is .*; it must be a step, 'best' or 'last'$"):
            load_params(saved, which)
    assert_same_bits(load_params(saved, np.int64(1))[1], states[1].params)


@pytest.mark.parametrize("damage", [flip, lambda file: shutil.rmtree(file.parents[2])])
def test_in_place_of_a_damaged_best_one_the_newest_is_loaded_with_a_warning(folder, states, capsys, damage):
    damage(data_files(folder, 2)[0])
    assert_same_bits(load_params(folder)[1], states[3].params)
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and "; the newest, of step 3, takes the place of the best\n" in err
    with pytest.raises(UsageError, match="2 is damaged: |no checkpoint of step 2"):
        load_params(folder, 2)


def test_of_a_model_only_the_weights_that_are_read_are_verified(folder, states, monkeypatch):
    """Moments are two thirds of a checkpoint, and the newest one is not read where another is the best."""
    hashed = []
    monkeypatch.setattr(manifest, "sha256", lambda file: hashed.append(file) or sha256(file))
    assert_same_bits(load_params(folder)[1], states[2].params)
    assert hashed and {file.relative_to(folder.resolve()).parts[:3] for file in hashed} == {
        ("checkpoints", "2", "params")
    }
    assert len(hashed) == len(set(hashed))


def test_a_run_that_goes_on_verifies_all_of_its_checkpoint_once(tiny, folder, monkeypatch):
    hashed = []
    monkeypatch.setattr(manifest, "sha256", lambda file: hashed.append(file.resolve()) or sha256(file))
    Checkpoints(folder).restore(tiny.abstract, latest(folder).step, verified=True)
    there = (path for item in ("params", "rest") for path in (folder / "checkpoints" / "3" / item).rglob("*"))
    assert sorted(hashed) == sorted(path.resolve() for path in there if path.is_file())


def test_params_may_be_loaded_in_half_precision(saved, states):
    _, params = load_params(saved, "last", dtype=jnp.bfloat16)
    assert_same_bits(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), states[3].params))


def test_weights_alone_go_round_but_are_no_run_to_resume(tiny, tmp_path):
    for params in (jax.tree.map(lambda x: 2 * x, tiny.params), tiny.params):  # the second time they are replaced
        save_params(tmp_path, tiny.config, jax.tree.map(jnp.asarray, params), source="test")
    config, params = load_params(tmp_path)
    assert config == tiny.config
    assert_same_bits(params, tiny.params)
    with pytest.raises(UsageError, match="holds weights only; start from them with --init_from"):
        Checkpoints(tmp_path).restore(tiny.abstract, 0)


def test_another_models_checkpoint_does_not_fit(tiny, folder):
    write_record(folder, replace(tiny.config, n_inner=16))
    with pytest.raises(UsageError, match=r"fit this model: h_0/mlp/c_fc/bias is \(32,\) there, and \(16,\) here"):
        load_params(folder, ignore_config_change=True)
    with pytest.raises(UsageError, match="config.json is not the record of the run that made checkpoint"):
        load_params(folder)
    write_record(folder, replace(tiny.config, tie_word_embeddings=False))
    with pytest.raises(UsageError, match=r"fit this model: lm_head/embedding is None there, and \(17, 8\) here"):
        load_params(folder, ignore_config_change=True)


@pytest.mark.parametrize("rows", [1, 200_000, 10**6])
def test_what_is_read_at_once_has_room_for_the_largest_leaf(rows):
    table = jax.ShapeDtypeStruct((rows, 1600), jnp.float32)
    assert table.size * 4 < gigabytes_at_once({"table": table}) * 10**9 <= table.size * 4 + 10**9


def test_only_a_lower_loss_is_better():
    progress = Progress(1).evaluated(float("nan"))
    assert progress == Progress(1)
    progress = Progress(2).evaluated(3.0)
    assert progress == Progress(2, 2, 3.0)
    for loss in (3.0, 3.5, float("nan"), float("inf")):
        assert Progress(3, 2, 3.0).evaluated(loss) == Progress(3, 2, 3.0)
