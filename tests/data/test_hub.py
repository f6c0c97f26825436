"""Data sets of the hub are read by name, split and revision; what is missing is one line that says what to do."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from jaxgpt.data import hub
from jaxgpt.data.hub import is_hub, read_hub, validation_split
from jaxgpt.data.record_files import read_records
from jaxgpt.errors import UsageError

ROWS = [{"text": "a", "label": 1, "id": None}, {"text": "b", "label": 0, "id": 7}]
SPLITS = {"train": ROWS, "validation": ROWS[:1], "test": ROWS[1:]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was loaded by a stand-in for `datasets`, which has one data set."""
    calls: list[object] = []

    def load(name: str, config: str | None, revision: str) -> dict[str, list[dict[str, object]]]:
        calls.append((name, config, revision))
        return SPLITS

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> SimpleNamespace:
            return SimpleNamespace(sha=f"sha of {revision or 'main'}")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hub._open.cache_clear()
    return calls


def test_rows_come_with_the_revision_that_they_are_of(asked: list[object]):
    rows, revision = read_hub("hub:someone/texts")
    assert list(rows) == [{"text": "a", "label": 1}, {"text": "b", "label": 0, "id": 7}]
    assert revision == "sha of main:train" and asked == [("someone/texts", None, "sha of main")]
    rows, revision = read_hub("hub:someone/texts@v2:test")
    assert list(rows) == [ROWS[1]] and revision == "sha of v2:test"
    assert list(read_records("hub:someone/texts:validation", ())) == [
        ("hub:someone/texts:validation row 1", {"text": "a", "label": 1})
    ]
    assert validation_split("hub:someone/texts") == "hub:someone/texts:validation"
    assert validation_split("hub:someone/texts:train") is None
    rows, revision = read_hub("hub:someone/texts/en@v2:test")
    assert (list(rows), revision) == ([ROWS[1]], "sha of v2/en:test")
    assert asked[-1] == ("someone/texts", "en", "sha of v2")
    assert validation_split("hub:someone/texts/en") == "hub:someone/texts/en:validation"
    assert not is_hub(Path("hub")) and not is_hub("hub.jsonl")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hub:someone/texts:dev", "someone/texts has no split 'dev'; there are train, validation, test"),
        ("hub::train", "hub::train: must be hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"),
    ],
)
def test_what_is_not_there_is_named(asked: list[object], spec: str, message: str):
    with pytest.raises(UsageError) as caught:
        read_hub(spec)
    assert message in str(caught.value)


def test_without_a_network_it_says_what_to_do(asked: list[object], monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Cannot reach it:\noffline mode is enabled")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    message = r"hub:a/b: cannot be had \(Cannot reach it:\); .* `hf download a/b --repo-type dataset --local-dir DIR`"
    with pytest.raises(UsageError, match=message):
        read_hub("hub:a/b")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub._open.cache_clear()
    with pytest.raises(UsageError, match=r"hub:a/c: the hub's data sets need another package: pip install .jaxgpt.hub"):
        read_hub("hub:a/c")


def test_a_folder_that_datasets_has_saved_is_read_as_it_is(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    splits = {"train": datasets.Dataset.from_list(rows), "validation": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    found, revision = read_hub(f"hub:{tmp_path / 'saved'}")
    assert list(found) == rows and revision.endswith(":train")
    assert validation_split(f"hub:{tmp_path / 'saved'}") == f"hub:{tmp_path / 'saved'}:validation"
