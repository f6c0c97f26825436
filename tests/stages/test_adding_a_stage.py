"""The page `docs/adding-a-stage.md`: its stage is run, stopped and resumed as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgpt.runs.weights import load_params
from jaxgpt.signals import Stop
from jaxgpt.stages import Pretrain
from jaxgpt.train.metrics import read_rows

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "eval_iters": 2}
SHORT = {"max_iters": 6, "warmup_iters": 1, "log_interval": 1, "sample_tokens": 0, "tensorboard": False}


@pytest.mark.slow
def test_the_pages_stage_learns_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    given = {"dataset": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path / "cache"), **SMALL, **SHORT}
    Pretrain(**given, learning_rate=1e-2).run(tmp_path / "teacher")

    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code.splitlines()) < 60
    names = {"__name__": "page"}
    exec(code, names)
    given |= {"teacher": str(tmp_path / "teacher"), "learning_rate": 1e-2}
    names["Distill"](**given).run(tmp_path / "whole")
    losses = [row["loss"] for row in read_rows(tmp_path / "whole" / "metrics.jsonl") if row["split"] == "val"]
    assert losses[-1] < losses[0]

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda self, done: done == 3)
        names["Distill"](**given).run(tmp_path / "parts")
    names["Distill"](**given, init_from="resume").run(tmp_path / "parts")
    (_, whole), (_, parts) = (load_params(tmp_path / name, 6) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
