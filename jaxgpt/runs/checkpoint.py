"""Checkpoints by orbax, each with a manifest of hashes: what is on disk is either whole or not used.

    checkpoints/STEP/params/  rest/  manifest.json

Orbax writes in the background into a temporary folder and renames it when all is there. The manifest is written
just before that, so a folder without one, whatever its name, is not a checkpoint. (The rename is atomic on POSIX
file systems; object stores are not supported.) Older checkpoints are deleted only when the new one is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import free_name
from jaxgpt.runs.folder import named_run
from jaxgpt.runs.manifest import TEMPORARY, Progress, read_manifest, step_of, steps, write_manifest

StateT = TypeVar("StateT")  # of training: a record with params, opt_state, frozen, carried, and numbers


class Checkpoints:
    """The checkpoints of one run: written one at a time in the background, read only if their hashes are right."""

    def __init__(self, run: Path, *, keep: int = 2) -> None:
        """Open the folder `run`; of what is saved, the last `keep` checkpoints stay, and the best.

        All processes of a run save together: orbax counts what each has saved, and one that has saved more would no
        longer wait for the others.
        """
        self.folder = (run / "checkpoints").resolve()  # orbax needs an absolute path
        run.mkdir(parents=True, exist_ok=True)
        self._place, self._run = os.stat(run), named_run(run / "config.json")
        self.keep = keep
        self._progress: Progress | None = None
        self._prunes = True
        # Weights hardly compress, and what is compressed is first held in memory whole.
        params, rest = (ocp.PyTreeCheckpointHandler(use_compression=False) for _ in range(2))
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(params=params, rest=rest),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )

    def save(self, state: Any, progress: Progress) -> None:
        """Begin to write a checkpoint of a `jaxgpt.train.TrainState`; when this returns, the state may change.

        Raises:
            RunError: this or an earlier one could not be written, or the state is not finite.
        """
        self.wait()
        if wrong := not_finite({"params": state.params, "opt_state": state.opt_state, "carried": state.carried}):
            raise RunError(
                f"the state after step {progress.step} is not finite, and not saved: {wrong[0]} holds a NaN or an "
                f"infinity; {self.last_good()}; try a lower --learning_rate or --weight_decay"
            )
        # Weights whose updates are being skipped may be beyond rescue: they take no other checkpoint's place.
        self._prunes = int(state.streak) == 0
        self.write(progress, params=state.params, rest=_rest(state))

    def write(self, progress: Progress, **items: Any) -> None:
        """Begin to write the trees `items`; of `save`'s, "params" alone is what `load_params` of `weights` reads."""
        self.wait()
        self._refuse_moved()
        self._progress = dataclasses.replace(progress, run=self._run)
        folder = self.folder / str(progress.step)
        trees = ocp.args.Composite(**{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()})
        with self._clear_errors():
            if jax.process_index() == 0 and folder.exists():
                _set_aside(folder, "a checkpoint of the same step takes its place")
            self._writer.save(folder, args=trees)

    def wait(self) -> None:
        """Return when what was begun is written; raise RunError if it could not be."""
        with self._clear_errors():
            self._writer.wait_until_finished()
            self._prune()

    def check(self) -> None:
        """Raise RunError if writing in the background has failed; does not wait."""
        with self._clear_errors():
            self._writer.check_for_errors()

    def restore(self, like: StateT, step: int, *, verified: bool = False) -> StateT:
        """Read a state.

        Args:
            like: gives shapes, dtypes and shardings, which need not be those it was saved with, and the frozen weights,
                which are not in the checkpoint.
            step: the checkpoint's.
            verified: its files have just been compared with their hashes, as `latest` does.

        Raises:
            UsageError: it is damaged, or holds weights only.
        """
        if not verified:
            read_manifest(self.folder / str(step))
        if not (self.folder / str(step) / "rest").is_dir():
            raise UsageError(f"{self.folder / str(step)} holds weights only; start from them with --init_from DIR")
        whole: Any = like
        items = read_items(self.folder / str(step), params=whole.params, rest=_rest(whole))
        return dataclasses.replace(whole, params=items["params"], **items["rest"])

    def last_good(self) -> str:
        """Say which checkpoint is the newest."""
        last = max(steps(self.folder.parent), default=None)
        return (
            "there is no checkpoint yet" if last is None else f"the last good checkpoint is {self.folder / str(last)}"
        )

    def finish(self) -> str:
        """Let what was begun be written, where that takes no other process, and say which checkpoint is the newest."""
        if jax.process_count() == 1:
            with contextlib.suppress(RunError):
                self.wait()
        return self.last_good()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._refuse_moved()
            what = "a checkpoint" if self._progress is None else f"the checkpoint of step {self._progress.step}"
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RunError(f"{what} could not be written: {reason[0]}; {self.last_good()}") from error

    def _refuse_moved(self) -> None:
        """Raise RunError if the run's folder is no longer where it was, and remove what was put there since."""
        run = self.folder.parent
        if run.exists() and os.path.samestat(os.stat(run), self._place):
            return
        # What was being written goes on for a moment, and makes its folders again; whatever else is there is another's.
        for _ in range(10):
            if list(run.glob("*")) == [self.folder] and all(TEMPORARY in path.name for path in self.folder.glob("*")):
                shutil.rmtree(run, ignore_errors=True)
            time.sleep(0.1)
        raise RunError(f"{run} was moved or removed while this run wrote into it; nothing more is saved")

    def _write_manifest(self) -> None:
        assert self._progress is not None
        self._refuse_moved()
        write_manifest(self.folder / f"{self._progress.step}{TEMPORARY}", self._progress)

    def _prune(self) -> None:
        """Delete checkpoints that are neither best nor among the last, up to the one just written."""
        if self._progress is not None and self._prunes and jax.process_index() == 0:
            done = [step for step in steps(self.folder.parent) if step <= self._progress.step]
            for step in sorted(done)[: -self.keep]:
                if step != self._progress.best_step:
                    shutil.rmtree(self.folder / str(step))


def quiet_traces() -> None:
    """Keep what orbax prints of an error, beside raising it, out of a command's terminal: it is pages."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A save that failed leaves some of orbax's coroutines without a turn.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = partial(_show_others, sys.unraisablehook)


def _show_others(show: Callable[[Any], Any], trace: sys.UnraisableHookArgs) -> None:
    # Tensorstore, from threads of its own, calls back event loops that a failed save has closed.
    if str(trace.exc_value) != "Event loop is closed":
        show(trace)


def sweep(run: Path, last: int) -> None:
    """Clear up, before a run goes on from step `last`, what earlier processes left in its folder.

    What a process was still writing when it ended is removed. Folders of later steps are damaged, or no checkpoints
    at all: they are set aside, so that they neither stand in the way nor count among those to keep.
    """
    for stale in run.glob(f"checkpoints/*{TEMPORARY}*"):
        print(f"note: removing {stale}, left by a process that ended while it was saving")
        shutil.rmtree(stale)
    for path in run.glob("checkpoints/*"):
        if (step := step_of(path)) is not None and step > last:
            _set_aside(path, "it is no checkpoint that can be used")


def not_finite(tree: Any) -> list[str]:
    """Return the paths of the leaves of a tree that hold a NaN or an infinity in a part that lies here.

    Each device looks through its own part: programs that sum over devices, many of them under way at once, wait for one
    another for ever where there are fewer threads than devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # All are asked before the first answer is waited for.
    found = [(path, [_zero(part) for part in _parts_here(leaf)]) for path, leaf in leaves]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, zeros in found if any(map(math.isnan, zeros))
    ]


def _parts_here(leaf: Any) -> list[Any]:
    """Return the parts of an array that lie on this process's devices, each once."""
    return (
        [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
        if isinstance(leaf, Array)
        else [jnp.asarray(leaf)]
    )


@jax.jit
def _zero(leaf: Array) -> Array:
    # 0 times a NaN or an infinity is NaN, and sums keep it; XLA:CPU's max and min of large arrays do not.
    return (0 * leaf).sum()


def _rest(state: Any) -> dict[str, Any]:
    # Nothing is carried by most stages, and then nothing of it is stored.
    elsewhere = ("params", "frozen", *(() if jax.tree.leaves(state.carried) else ("carried",)))
    names = [field.name for field in dataclasses.fields(state) if field.name not in elsewhere]
    return {name: getattr(state, name) for name in names}


def read_items(folder: Path, **like: Any) -> dict[str, Any]:
    """Restore a checkpoint's items into the shapes, dtypes and shardings of `like`."""
    restored = {}
    # One by one: what orbax says of a checkpoint as a whole stands in the one file that the manifest can't guard.
    # And a part at a time: what is being read is in memory twice.
    with _reader(restore_concurrent_gb=gigabytes_at_once(like)) as reader:
        for name, tree in like.items():
            _check_shapes(folder, _metadata(reader, folder / name), tree)
            how = ocp.checkpoint_utils.construct_restore_args(tree)
            restored[name] = reader.restore(folder / name, args=ocp.args.PyTreeRestore(tree, restore_args=how))
    return restored


def _reader(**how: Any) -> ocp.Checkpointer:
    """Return what reads for this process, which waits for no other: one of several may read alone."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone, **how)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def gigabytes_at_once(like: Any) -> int:
    """Return how much of a tree to read at once; orbax refuses leaves that are not below it."""
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)), default=0)
    return largest // 10**9 + 1


def stored_paths(item: Path) -> set[tuple[str, ...]]:
    """Return the paths of all leaves of an item of a checkpoint."""
    with _reader() as reader:
        leaves = jax.tree_util.tree_leaves_with_path(_metadata(reader, item))
    return {tuple(str(key.key) for key in path) for path, _ in leaves}


def _metadata(reader: ocp.Checkpointer, item: Path) -> Any:
    with _level("absl", logging.ERROR):  # it warns that an item has no metadata as a whole checkpoint has
        stored: Any = reader.metadata(item)
    return stored.item_metadata


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    yield
    logger.setLevel(before)


def _check_shapes(folder: Path, stored: Any, wanted: Any) -> None:
    """Raise a UsageError unless two trees have the same names and shapes.

    Orbax finds it out, too, but in the middle of reading, with tracebacks from what reads beside it.
    """
    there, here = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (stored, wanted))
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UsageError(
                f"{folder} does not fit this model: {name} is {there.get(name)} there, and {here.get(name)} here"
            )


def _set_aside(path: Path, why: str) -> None:
    aside = free_name(path)
    path.rename(aside)
    print(f"warning: {path} is now {aside}: {why}", file=sys.stderr)
