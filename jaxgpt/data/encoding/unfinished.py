"""Where a corpus is made: a hidden folder in the cache, which one process at a time works on, and what is left of it.

A file beside it is locked for as long as that process lives, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from jaxgpt.data.encoding.growing import progress_file
from jaxgpt.errors import RunError, UsageError
from jaxgpt.notes import note
from jaxgpt.progress import SHORT
from jaxgpt.signals import on_interrupt

_KEPT = "what was encoded is kept, and the same command goes on from there"
_HIDDEN, _LOCK = ".unfinished-", ".lock"


@contextlib.contextmanager
def unfinished(folder: Path, key: str) -> Iterator[Path]:
    """Give a place in which `folder` is made, empty or as a process left it that was stopped.

    Another process that makes the same is waited for. Of what was left of others, only that is kept in which something
    was kept last. The place is gone after the block, and after an error of the input, as nobody would go on from that;
    whatever else ends the block leaves it, once something was kept in it.

    Args:
        folder: what is made.
        key: names it and all that decides its contents.

    Raises:
        UsageError: the cache can't be written to.
        RunError: it could not be written to in the block, as it is full, unless `folder` is there.
    """
    corpora = folder.parent
    with contextlib.ExitStack() as stack:
        place, leave = corpora / f"{_HIDDEN}{key}", _leave
        try:
            corpora.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_wait_for_lock(place))
            except OSError:  # some network file systems have no locks: nobody can tell what was left from what is used
                place, leave = corpora / f"{_HIDDEN}{secrets.token_hex(8)}", _remove
            _remove_others(place)
            place.mkdir(exist_ok=True)
        except OSError as error:
            why = f"cannot be written to: {error.strerror}; choose another"
            raise UsageError(f"cache_dir {corpora.parent}: {why}") from None
        stack.enter_context(on_interrupt(partial(leave, place)))
        try:
            yield place
        except UsageError:
            _remove(place)
            raise
        except (OSError, RunError) as error:
            kept = leave(place)
            if not folder.exists():
                why = f"{folder}: cannot be written: {error.strerror}" if isinstance(error, OSError) else str(error)
                raise RunError("; ".join(filter(None, (why, kept)))) from None
        except BaseException:
            leave(place)
            raise
        else:
            _remove(place)


def _wait_for_lock(place: Path) -> IO[str]:
    begin = time.monotonic()
    while (lock := _lock(place)) is None:
        if time.monotonic() - begin > SHORT:
            note(f"waiting for another process, which encodes the same text ({_lock_of(place)})")
        time.sleep(SHORT / 10)
    return lock


def _lock(place: Path) -> IO[str] | None:
    """Return the open file that locks a folder; None while another process has it.

    Raises:
        OSError: there are no locks, or the file can't be made.
    """
    path = _lock_of(place)
    file = path.open("a")
    try:
        # Who had it before may have removed it since it was opened, and another made a new one.
        if lock_descriptor(file.fileno(), blocking=False) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except OSError:
        file.close()
        raise
    file.close()
    return None


def _remove_others(place: Path) -> None:
    """Remove the folders of other keys, but those at work and, of the rest, that in which something was kept last."""
    left: list[tuple[float, Path]] = []
    with contextlib.ExitStack() as stack:
        for name in {path.name.removesuffix(_LOCK) for path in place.parent.glob(f"{_HIDDEN}*")} - {place.name}:
            other = place.with_name(name)
            with contextlib.suppress(OSError):
                if (lock := _lock(other)) is not None:
                    stack.enter_context(lock)
                    left.append((_last_kept(other), other))
        left.sort()
        if left and left[-1][0]:
            left.pop()
        for _, other in left:
            _remove(other)


def _leave(place: Path) -> str | None:
    """Remove a folder in which nothing was kept; else return what to say of it."""
    if _last_kept(place):
        return _KEPT
    _remove(place)
    return None


def _last_kept(place: Path) -> float:
    """Return when something was kept in a folder; 0 if nothing was."""
    file = progress_file(place)
    return file.stat().st_mtime if file.exists() else 0.0


def _lock_of(place: Path) -> Path:
    return place.with_name(place.name + _LOCK)


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):  # Windows deletes no open file
        _lock_of(place).unlink()
