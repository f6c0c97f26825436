"""The door to every file that is read: only regular ones pass, for a pipe or a device may block for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a regular file, or of a link to one.

    Raises:
        OSError: nothing is there, or something else; its `strerror` says what.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Neither a file nor a folder, but a pipe, a socket or a device", str(path))
    return Path(path)
