"""A model card, README.md of a folder of weights: what the model is, and of a run's record how it came to be."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxgpt.hf.hub import NAME
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.folder import read_record
from jaxgpt.train.metrics import read_rows

CARD = "README.md"
MADE_OF = ("dataset", "val_dataset", "init_from", "base", "reward_model", "tokenizer")
"""Flags that name what a run was made of; of paths, the card has the last part alone."""


def model_card(
    run: Path,
    config: GPTConfig,
    *,
    title: str,
    step: int | None,
    left_out: Collection[str],
    ignore_change: bool = False,
) -> str:
    """Return the card of a run's model, as the hub shows it.

    Args:
        run: the run's folder.
        config: the model's.
        title: the model's name.
        step: the checkpoint's; None where that is not known.
        left_out: flags that are no part of the recipe: see `about_run` of `jaxgpt.flags.flag`.
        ignore_change: see `read_record`.

    Raises:
        UsageError: see `read_record`.
    """
    record = read_record(run, ignore_change=ignore_change)
    flags = {name: _public(name, value) for name, value in (record.get("flags") or {}).items()}
    begun = _public("base", record.get("begun_from"))
    parts = [_head(config, record.get("stage"), flags, begun), f"# {title}", _about(config, record, begun)]
    parts += [_use(config, title)]
    if record.get("data"):
        named = {**_datasets(flags), "val_dataset": flags.get("val_dataset")}
        hub = [name for name, value in named.items() if str(value).startswith("hub:")]
        hashes = {f"{'revision' if k in hub else 'hash'} of {k}": value for k, value in record["data"].items()}
        parts += ["## Data", _table(("", ""), [(k, f"`{v}`") for k, v in {**named, **hashes}.items() if v is not None])]
    if recipe := [(name, f"`{json.dumps(v)}`") for name, v in flags.items() if v is not None and name not in left_out]:
        parts += ["## Recipe", _table(("flag of `train.py`", "value"), recipe)]
    if rows := _evaluations(run, step):
        names = list(dict.fromkeys(name for row in rows for name in row))
        figures = [[_shown(row.get(name)) for name in names] for row in rows]
        parts += [
            "## Losses and evaluation",
            "On the data to validate on, but for what begins with train.",
            _table(names, figures),
        ]
    made = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    return "\n\n".join([*parts, f"Made with {made}."]) + "\n"


def _head(config: GPTConfig, stage: str | None, flags: Mapping[str, Any], begun: str | None) -> str:
    """Return what the hub reads of a card."""
    task = "text-generation" if config.labels is None else "text-classification"
    lines = ["library_name: transformers", f"pipeline_tag: {task}"]
    lines += ["tags:", *(f"- {tag}" for tag in ("gpt2", "jaxgpt", stage) if tag)]
    if begun and "/" in begun and NAME.fullmatch(begun):
        lines.append(f"base_model: {begun}")
    hub = [re.split("[@:]", str(one))[1] for one in _datasets(flags).values() if str(one).startswith("hub:")]
    if names := [name for name in hub if "/" in name and NAME.fullmatch(name)]:
        lines += ["datasets:", *(f"- {name}" for name in names)]
    return "\n".join(["---", *lines, "---"])


def _datasets(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data sets by what a run's record calls their revisions."""
    found = flags.get("dataset")
    if not isinstance(found, list | tuple):
        return {"dataset": found}
    return {f"dataset {number}": one for number, one in enumerate(found, 1)}


def _about(config: GPTConfig, record: Mapping[str, Any], begun: str | None) -> str:
    stage = f" trained by the stage `{record['stage']}`" if record.get("stage") else ""
    size = f"{count(config)['total']:,} parameters, {config.n_layer} layers, {config.n_head} heads"
    text = f"A GPT-2 model{stage}: {size}, width {config.n_embd}, a context of {config.n_positions} tokens."
    labels = f" It scores {', '.join(config.labels)}." if config.labels else ""
    return text + labels + (f" It began with `{begun}`." if begun else "")


def _use(config: GPTConfig, title: str) -> str:
    auto = "AutoModelForCausalLM" if config.labels is None else "AutoModelForSequenceClassification"
    return (
        f"```python\nfrom transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("{title}")\ntokenizer = AutoTokenizer.from_pretrained("{title}")\n```'
    )


def _evaluations(run: Path, step: int | None) -> list[dict[str, Any]]:
    """Return evaluations of a run: the first, that of the model, and the last; without those that are another's."""
    found = {row["step"]: row for row in read_rows(run / "metrics.jsonl") if row["split"] == "val"}
    wanted = {min(found), step, max(found)} if found else set()
    rows = [found[one] for one in sorted(found) if one in wanted]
    return [{name: value for name, value in row.items() if name != "split"} for row in rows]


def _public(name: str, value: Any) -> Any:
    """Return a flag's value without folders of somebody's machine."""
    if name in MADE_OF and isinstance(value, list | tuple):
        return [_public(name, one) for one in value]
    if name not in MADE_OF or not isinstance(value, str) or value.startswith("hub:"):
        return value
    return value if NAME.fullmatch(value) and not Path(value).exists() else Path(value).name


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
