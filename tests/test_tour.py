"""docs/tour.ipynb runs from its first cell to its last, and says again what was saved of it."""

import ast
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
CELLS = [cell for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
LEARNT = ("stage.run(", "generate(config")  # what these print is another machine's to the last digit only


def saved(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_each_cell_shows_something_and_all_of_it_is_small():
    assert len(CELLS) == 10 and all(cell["outputs"] for cell in CELLS)
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, 11))
    assert TOUR.stat().st_size < 150_000


@pytest.mark.slow
def test_the_tour_runs_and_says_what_was_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back, as the first cell goes to a folder of its own
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in CELLS:
        source = "".join(cell["source"])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(ast.parse(source), f"cell {cell['execution_count']}", "exec"), names)
        if not any(call in source for call in LEARNT):
            assert said.getvalue() == saved(cell)
        assert len(said.getvalue().splitlines()) == len(saved(cell).splitlines())
    assert names["rows"][-1]["loss"] < names["rows"][0]["loss"]
    assert {check.result for check in names["checks"]} <= {"pass", "not applicable"}
