"""The page that `train.py --explore` writes at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.explore import explore
from jaxgpt.runs import open_model
from jaxgpt.stages.base import Stage

PAGE = "explore.html"
MOST_TOKENS = 96


def write_page(stage: Stage[Any], folder: Path) -> None:
    """Write a page that shows a run's best model at work on its excerpt; say where it is, or why there is none."""
    model = open_model(str(folder), ignore_config_change=True)
    ids = stage.excerpt()[: min(MOST_TOKENS, stage.config.n_positions)]
    try:
        page = explore(*model, ids, name=str(folder), run=folder)
    except UsageError as error:
        print(f"page:  none, {error}")
        return
    (folder / PAGE).write_text(page, encoding="utf-8")
    print(f"page:  {folder / PAGE}; open it in a browser")
