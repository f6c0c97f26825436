"""Token files that grow, and of which what is on the disk outlives whatever ends their process.

`progress.json` says how many ids count, and their hash. It is replaced only when these are on the disk, so it is true
at every moment; what stands behind them in the files is cut off by whoever goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from jaxgpt.data.encoding.cutting import Task
from jaxgpt.data.sources import SPLITS, Split
from jaxgpt.data.tokens.token_writer import TokenWriter
from jaxgpt.errors import UsageError
from jaxgpt.files import read_json, write_json
from jaxgpt.tokenizers.tokenizer import Tokenizer

_KEEP_EVERY = 5.0  # seconds of work, which is what a kill costs; keeping waits for the disk


class OtherTasksError(Exception):
    """The tasks that were done are not among those to do, as after a change of how text is cut."""


@dataclass(frozen=True)
class Progress:
    """How far an unfinished corpus has come.

    Attributes:
        tokenizer: fingerprint of the one that was made from the text, once it has been saved.
        tasks: how many were done.
        characters: in these; it tells them from others.
        tokens: ids of these, by split.
        sha256: of these ids, by split.
    """

    tokenizer: str = ""
    tasks: int = 0
    characters: int = 0
    tokens: dict[Split, int] = field(default_factory=dict)
    sha256: dict[Split, str] = field(default_factory=dict)

    @classmethod
    def read(cls, place: Path) -> Progress:
        """Return what the file in a folder says; nothing has been done where there is none, or a damaged one."""
        try:
            return cls(**read_json(progress_file(place)))
        except (UsageError, TypeError):
            return cls()

    def write(self, place: Path) -> None:
        """Put the file into a folder, whole and on the disk."""
        write_json(progress_file(place), asdict(self))


def progress_file(place: Path) -> Path:
    """Return the file that says how far the corpus in this place has come."""
    return place / "progress.json"


class GrowingCorpus:
    """The token files of a corpus, to which ids are appended task by task.

    Attributes:
        begun: how far they were when they were opened.
    """

    def __init__(self, place: Path, folder: Path, tokenizer: Tokenizer) -> None:
        """Prepare for files in `folder`, whose progress stands in `place`."""
        self._place, self._folder, self._tokenizer = place, folder, tokenizer
        self._files: dict[Split, TokenWriter] = {}
        self._kept_at = time.monotonic()
        self.begun = self._now = Progress.read(place)

    def open(self) -> None:
        """Open the files to go on from where the progress says; where they are not as it says, begin."""
        if not (self.begun.tasks and self._has_what_was_kept()):
            self.begin_anew()

    def close(self) -> None:
        """Close the files that are open."""
        for file in self._files.values():
            file.close()

    def begin_anew(self) -> None:
        """Take nothing as done but the tokenizer."""
        if self.begun.tasks:
            Progress(self.begun.tokenizer).write(self._place)
        self.begun = self._now = Progress(self.begun.tokenizer)
        self._open(dict.fromkeys(SPLITS, 0))
        for file in self._files.values():
            file.append(np.array(self._tokenizer.ends.begin, np.uint32))

    def left_of(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield those of all tasks that are still to be done.

        Raises:
            OtherTasksError: those that were done are not the first ones.
        """
        tasks, done, characters = iter(tasks), 0, 0
        for task in islice(tasks, self.begun.tasks):
            done, characters = done + 1, characters + task.characters
        if (done, characters) != (self.begun.tasks, self.begun.characters):
            raise OtherTasksError
        yield from tasks

    def append(self, task: Task, ids: np.ndarray) -> None:
        """Add the ids of the next task; every few seconds all that is there is kept."""
        self._files[task.split].append(ids)
        tasks, characters = self._now.tasks + 1, self._now.characters + task.characters
        self._now = replace(self._now, tasks=tasks, characters=characters)
        if time.monotonic() - self._kept_at >= _KEEP_EVERY:
            self._keep()

    def complete(self) -> None:
        """Write what stands at the end of the files and beside them."""
        for split, file in self._files.items():
            file.append(np.array(self._tokenizer.ends.end, np.uint32))
            file.sync()
            file.write_sidecar(self._folder / f"{split}.bin")

    def _keep(self) -> None:
        for file in self._files.values():
            file.sync()
        sha256 = {split: file.sha256 for split, file in self._files.items()}
        tokens = {split: file.tokens for split, file in self._files.items()}
        self._now = replace(self._now, tokens=tokens, sha256=sha256)
        self._now.write(self._place)
        self._kept_at = time.monotonic()

    def _has_what_was_kept(self) -> bool:
        try:
            self._open(self.begun.tokens)
        except OSError:
            return False
        return self.begun.sha256 == {split: file.sha256 for split, file in self._files.items()}

    def _open(self, kept: dict[Split, int]) -> None:
        self.close()
        for split in SPLITS:
            self._files[split] = TokenWriter(self._folder / f"{split}.bin", self._tokenizer, kept=kept[split])
