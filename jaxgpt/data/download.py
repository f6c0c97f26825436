"""Public corpora by name: downloaded once, checked, and kept in the cache folder."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub

from jaxgpt.errors import UsageError
from jaxgpt.files import replacing, sha256
from jaxgpt.progress import bar

_TIMEOUT_S = 60
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class WebFile:
    """One file on the web, and the SHA-256 it must have."""

    has_splits: ClassVar = False
    row_separator: ClassVar = None

    url: str
    file: str
    sha256: str
    val_fraction: float = 0.1


@dataclass(frozen=True)
class HubFiles:
    """Files of a data set on the Hugging Face hub. A commit of the hub is its own checksum.

    Attributes:
        repo: the data set.
        files: their pattern, in which {split} stands for train, validation or test where it has these.
        val_fraction: of the documents, for validation, where the data set has no split for that.
        revision: the commit; None for the newest.
        row_separator: what stands between rows that are parts of one text; None where each is a document.
    """

    repo: str
    files: str
    val_fraction: float = 0.1
    revision: str | None = None
    row_separator: str | None = None

    @property
    def has_splits(self) -> bool:
        return "{split}" in self.files


def _wikitext(config: str) -> HubFiles:
    """Return files of WikiText (Merity et al. 2016), a line a row, joined as in published perplexities."""
    revision = "b08601e04326c79dfdd32d625aee71d232d685c3"
    return HubFiles("Salesforce/wikitext", f"{config}/{{split}}-*.parquet", revision=revision, row_separator="\n\n")


DOWNLOADS: dict[str, WebFile | HubFiles] = {
    "shakespeare": WebFile(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        val_fraction=0.1,
    ),
    "openwebtext": HubFiles("Skylion007/openwebtext", "plain_text/*.parquet", val_fraction=0.0005),
    "fineweb": HubFiles("HuggingFaceFW/fineweb", "sample/10BT/*.parquet", val_fraction=0.0005),
    "wikitext2": _wikitext("wikitext-2-raw-v1"),
    "wikitext103": _wikitext("wikitext-103-raw-v1"),
}


def download(name: str, cache_dir: Path, split: str = "train") -> list[Path]:
    """Return the files of one of `DOWNLOADS`, from `cache_dir` if they are there.

    Args:
        name: its key.
        cache_dir: downloads go to `downloads/` in it.
        split: which of its files, where it has splits.

    Raises:
        UsageError: if it cannot be had, saying where to put it by hand; or if its checksum is wrong.
    """
    origin = DOWNLOADS[name]
    if isinstance(origin, WebFile):
        return [web_file(name, origin, cache_dir)]
    files, folder = origin.files.format(split=split), cache_dir / "downloads" / name
    if origin.revision is not None and (found := _complete(folder, files)):
        return found
    reason = "not all are there"
    try:
        if origin.revision is not None:  # without a network this fails at once, and what is below only after retries
            huggingface_hub.HfApi().dataset_info(origin.repo, revision=origin.revision)
        place = huggingface_hub.snapshot_download(
            origin.repo, repo_type="dataset", revision=origin.revision, allow_patterns=files, local_dir=folder
        )
        if found := _complete(Path(place), files):
            return found
    except Exception as error:  # besides its own, the HTTP client's, which is not the same in all versions
        reason = _first_line(error)
    what = f"{files} of the hub's data set {origin.repo}"
    by_hand = "a folder by hand and give the folder as the dataset"
    if origin.revision is not None:
        what, by_hand = f"{what} at {origin.revision}", f"{folder} by hand"
    raise UsageError(f"dataset {name!r}: {what} cannot be downloaded ({reason}); put these files into {by_hand}")


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


def _complete(folder: Path, pattern: str) -> list[Path]:
    """Return files sorted by name; none if there are fewer than their names say, as in train-00000-of-00002.parquet."""
    found = sorted(folder.glob(pattern))
    totals = [int(total) for file in found for total in re.findall(r"-of-(\d+)", file.name)]
    return found if len(found) >= max(totals, default=0) else []


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
