"""Public corpora by name: downloaded once, checked, and kept in the cache folder."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from jaxgpt.errors import UsageError
from jaxgpt.files import replacing, sha256
from jaxgpt.progress import bar

_TIMEOUT_S = 60
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class WebFile:
    """One file on the web, and the SHA-256 it must have."""

    url: str
    file: str
    sha256: str
    val_fraction: float = 0.1


@dataclass(frozen=True)
class HubFiles:
    """Files of a data set on the Hugging Face hub, by pattern. A commit of the hub is its own checksum."""

    repo: str
    files: str
    val_fraction: float


DOWNLOADS: dict[str, WebFile | HubFiles] = {
    "shakespeare": WebFile(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        val_fraction=0.1,
    ),
    "openwebtext": HubFiles("Skylion007/openwebtext", "plain_text/*.parquet", val_fraction=0.0005),
    "fineweb": HubFiles("HuggingFaceFW/fineweb", "sample/10BT/*.parquet", val_fraction=0.0005),
}


def download(name: str, cache_dir: Path) -> list[Path]:
    """Return the files of one of `DOWNLOADS`, from `cache_dir` if they are there.

    Args:
        name: its key.
        cache_dir: downloads go to `downloads/` in it.

    Raises:
        UsageError: if it cannot be had, saying where to put it by hand; or if its checksum is wrong.
    """
    origin = DOWNLOADS[name]
    if isinstance(origin, WebFile):
        return [web_file(name, origin, cache_dir)]
    try:
        folder = huggingface_hub.snapshot_download(
            origin.repo,
            repo_type="dataset",
            allow_patterns=origin.files,
            local_dir=cache_dir / "downloads" / name,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"dataset {name!r}: {origin.files} of the hub's data set {origin.repo} cannot be downloaded "
            f"({_first_line(error)}); put these files into a folder by hand and give the folder as the dataset"
        ) from None
    return sorted(Path(folder).glob(origin.files))


def web_file(name: str, origin: WebFile, cache_dir: Path) -> Path:
    """Return a file from the web that has its checksum, from `cache_dir` if it is there; errors as of `download`."""
    path = cache_dir / "downloads" / origin.file
    if not path.exists():
        _fetch(name, origin, path)
    _check(origin, path)
    return path


def _fetch(name: str, origin: WebFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        try:
            with urllib.request.urlopen(origin.url, timeout=_TIMEOUT_S) as response:
                with part.open("wb") as stream, bar(name, unit="B", total=_size(response)) as shown:
                    while chunk := response.read(_CHUNK):
                        stream.write(chunk)
                        shown.update(len(chunk))
        except OSError as error:  # URLError and timeouts are OSErrors
            raise UsageError(
                f"dataset {name!r}: {origin.url} cannot be downloaded ({_first_line(error)}); "
                f"fetch it by hand and put it at {path}"
            ) from None
        _check(origin, part)


def _size(response: Any) -> int | None:
    """Return how many bytes an answer says that it has, if it does."""
    return getattr(response, "length", None)


def _check(origin: WebFile, path: Path) -> None:
    try:
        found = sha256(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if found != origin.sha256:
        raise UsageError(
            f"{path}: SHA-256 is {found}, not {origin.sha256}; take it away to download {origin.url} again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
