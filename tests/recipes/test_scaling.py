"""The ladder: its figures are those of its runs, and called again it trains nothing."""

import json

import pytest

from jaxgpt.explore.training import read_ladder
from jaxgpt.inspect import fit_power_law
from jaxgpt.model.atlas import count
from jaxgpt.runs.weights import load_params
from jaxgpt.train.metrics import read_rows
from recipes import scaling


def test_the_law_is_that_of_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "LADDER", ((1, 16), (1, 32), (2, 32)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 300)
    argv = ["--out_dir", str(tmp_path / "out"), "--dataset", str(tmp_path / "text.txt"), "--max_iters", "4"]
    scaling.main(argv)
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    for run, name in zip(found["runs"], ("1x16", "1x32", "2x32"), strict=True):
        assert run["tokens"] == 4 * 12 * 64 and run["compute"] == 6 * run["parameters"] * run["tokens"]
        assert run["parameters"] == count(load_params(tmp_path / "out" / name)[0])["total"]
        assert run["loss"] == read_rows(tmp_path / "out" / name / "metrics.jsonl")[-1]["loss"]
    law = fit_power_law([run["compute"] for run in found["runs"]], [run["loss"] for run in found["runs"]])
    assert found["law"] == pytest.approx(vars(law)) and (tmp_path / "out" / "scaling.png").exists()
    assert read_ladder(tmp_path / "out" / "scaling.json") == [
        (run["parameters"], run["tokens"], run["loss"]) for run in found["runs"]
    ]
    before = capsys.readouterr().out
    scaling.main(argv)
    after = capsys.readouterr().out
    assert "val loss" in before and "val loss" not in after
    assert before.splitlines()[-6:] == after.splitlines()[-6:]
    with pytest.raises(SystemExit) as caught:
        scaling.main(["--max_iters", "0"])
    assert caught.value.code == 2 and "--max_iters" in capsys.readouterr().err
