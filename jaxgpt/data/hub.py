"""Data sets of the Hugging Face hub, or in a folder of theirs, through the optional package `datasets`: their rows."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError

PREFIX = "hub:"
SPELLED = "hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"
_VALIDATION = ("validation", "valid", "val", "dev")


def is_hub(name: object) -> bool:
    """Return whether a data set's name is one of the hub's."""
    return isinstance(name, str) and name.startswith(PREFIX)


def read_hub(spec: str, column: str | None = None) -> tuple[Iterator[dict[str, Any]], str]:
    """Return a data set's rows, without values that are null, and the revision that they are of.

    Args:
        spec: `hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`; in the place of OWNER/NAME may stand a folder
            that `datasets` reads. Without SPLIT it is train, or the only one there is.
        column: the only one to read; None for all.

    Raises:
        UsageError: the package is missing, there is no network, or no such data set, revision or split.
    """
    part, revision = _part(spec)
    chosen = part if column is None else part.select_columns([column])
    return ({key: value for key, value in row.items() if value is not None} for row in chosen), revision


def columns_and_size(spec: str) -> tuple[list[str], int]:
    """Return the names of a data set's columns, and its bytes in memory; see `read_hub`."""
    part, _ = _part(spec)
    return list(part.column_names), part.data.nbytes


def validation_split(spec: str) -> str | None:
    """Return how the split to validate on is spelled that belongs to a data set named without a split, or None."""
    if _parts(spec)[3]:
        return None
    splits, _ = _open(spec)
    found = next((split for split in _VALIDATION if split in splits), None)
    return found and f"{spec}:{found}"


def _part(spec: str) -> tuple[Any, str]:
    """Return the split that is asked for, and its revision."""
    name, _, _, split = _parts(spec)
    splits, revision = _open(spec.removesuffix(f":{split}") if split else spec)
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise UsageError(f"{spec}: {name} has no split {wanted!r}; there are {', '.join(splits)}")
    return splits[wanted], f"{revision}:{wanted}"


def _parts(spec: str) -> tuple[str, str | None, str | None, str | None]:
    """Return name, config, revision and split."""
    name, _, split = spec.removeprefix(PREFIX).partition(":")
    name, _, revision = name.partition("@")
    if not name:
        raise UsageError(f"{spec}: must be {SPELLED}")
    config = None
    if not Path(name).is_dir() and name.count("/") > 1:
        owner, name, config = name.split("/", 2)
        name = f"{owner}/{name}"
    return name, config or None, revision or None, split or None


@functools.lru_cache(maxsize=4)
def _open(spec: str) -> tuple[Mapping[str, Any], str]:
    """Return all splits of a data set that is named without one, and its revision."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(f"{spec}: the hub's data sets need another package: pip install 'jaxgpt[hub]'") from None
    name, config, revision, _ = _parts(spec)
    try:
        if Path(name).is_dir():
            saved = any((Path(name) / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
            found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
            splits = found if isinstance(found, dict) else {"train": found}
            return splits, "-".join(str(split._fingerprint) for split in splits.values())
        from huggingface_hub import HfApi

        sha = HfApi().dataset_info(name, revision=revision).sha
        return datasets.load_dataset(name, config, revision=sha), f"{sha}/{config}" if config else str(sha)
    except Exception as error:  # besides its own, those of pyarrow and of HTTP clients, which differ by version
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"{spec}: cannot be had ({reason[:300]}); it must be {SPELLED}, and there must be a network. Where there "
            f"is one, `hf download {name} --repo-type dataset --local-dir DIR` fetches its files, one of which or DIR "
            "can be given in its place"
        ) from None
