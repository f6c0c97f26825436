"""A model, a tokenizer and a text → one page of HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt import checks
from jaxgpt.decode import generate
from jaxgpt.errors import UsageError
from jaxgpt.explore import collect, tables, training
from jaxgpt.explore.data import as_json, shown
from jaxgpt.explore.pictures import ABSENT, pictures
from jaxgpt.inspect.record import inspect
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.resize import without_values
from jaxgpt.runs.folder import read_record
from jaxgpt.runs.manifest import Which
from jaxgpt.runs.weights import find_checkpoint
from jaxgpt.tokenizers import Tokenizer
from jaxgpt.train.metrics import read_rows

SCRIPTS = ("base", "tokenizer", "tokens", "tables", "attention", "predictions", "architecture", "training", "scaling")
SAMPLE_TOKENS = 60


def explore(
    config: GPTConfig,
    params: Any,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    *,
    name: str = "model",
    run: Path | None = None,
    checkpoint: Which = "best",
    other: tuple[GPTConfig, Any, Tokenizer] | None = None,
    other_name: str = "",
    ladder: Sequence[training.Rung] = (),
) -> str:
    """Return a page that shows a model at work on a text, with all that it needs in it.

    Args:
        config, params, tokenizer: the model.
        text: what it reads, or its ids.
        name: shown as the page's title.
        run: the folder of the run that trained it, for its curves and its weights through training.
        checkpoint: which of the run's the model is.
        other, other_name: another model with the same tokenizer, whose predictions are shown beside.
        ladder: other runs among which this one is shown, as `read_ladder` gives them.

    Raises:
        UsageError: fewer than two tokens, more than the context, an id that stands for no text, another tokenizer, or
            a model that gives NaN.
    """
    if isinstance(text, str):
        ids = [*tokenizer.ends.begin, *tokenizer.encode_part(text)]
    else:
        ids = checks.ids("text", text, "a text, or a list of token ids").tolist()
    if len(ids) < 2:
        raise UsageError(f"text {text!r}: {len(ids)} tokens; there must be two or more to predict one from another")
    if len(ids) > config.n_positions:
        raise UsageError(f"text: {len(ids)} tokens, but the model's context is {config.n_positions}; shorten it")
    if other is not None:
        its_config, _, its_tokenizer = other
        if its_tokenizer.fingerprint != tokenizer.fingerprint:
            raise UsageError(f"compare {other_name}: its tokenizer is another than that of {name}")
        if len(ids) > its_config.n_positions:
            raise UsageError(f"text: {len(ids)} tokens, but the context of {other_name} is {its_config.n_positions}")
    known = min(tokenizer.vocab_size, config.vocab_size)
    checks.below("text", np.asarray(ids), known)
    config, params = without_values(config, params)
    found = inspect(config, params, [ids], lens=False)
    if not np.isfinite(found.logits).all():
        raise UsageError(f"{name}: its logits are no finite numbers: its weights are broken, and nothing can be shown")
    record = {} if run is None else read_record(run, ignore_change=True)
    step, embeddings, through = None, {}, []
    if run is not None:
        step = int(find_checkpoint(run, checkpoint).name)
        for done, its_params in training.history(run, step, record, config):
            embeddings[done] = _embeddings(its_params, known)
            through.append({"step": done, **_said(config, its_params, tokenizer, ids)})
    # What was not trained is the same at all steps.
    if step not in embeddings or all(np.array_equal(table, embeddings[step]) for table in embeddings.values()):
        embeddings = {step: _embeddings(params, known)}
    data: dict[str, Any] = {
        "name": name,
        "step": step,
        "notes": training.notes(record, config),
        "ids": ids,
        "config": {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")},
        "labels": config.labels,
        "tokenizer": collect.tokenizer_data(tokenizer),
        "embeddings": tables.embedding_data(embeddings, step, ids),
        "positions": tables.position_data(config, params, ids),
        "attention": collect.attention_data(found),
        "stream": collect.stream_data(found),
        "predictions": collect.prediction_data(config, params, found, known),
        "through": through,
        "absent": ABSENT,
        "architecture": tables.architecture_data(config, params),
        "training": {} if run is None else training.training_data(run, record),
        "scaling": training.scaling_data(run, record, config, ladder),
    }
    if other is not None:
        theirs = inspect(other[0], other[1], [ids], lens=False)
        data["compared"] = {"name": other_name, **collect.compared_data(theirs, known)}
    rows = [] if run is None else read_rows(run / "metrics.jsonl")
    stills = pictures(config, params, found, partial(_name, tokenizer), rows, data["scaling"], known)
    return _filled(tokenizer, ids, data, stills)


def _name(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's text to look at; in a hole of the vocabulary, the id, as the page's script does."""
    try:
        return shown(tokenizer.decode_bytes([token]))
    except UsageError:
        return f"[{token}]"


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    return f"<bdi><code>{html.escape(_name(tokenizer, token))}</code></bdi>"


def _said(config: GPTConfig, params: Any, tokenizer: Tokenizer, ids: list[int]) -> dict[str, Any]:
    """Return what a model expects in the text, and what it writes by itself after the text's first token."""
    known = min(tokenizer.vocab_size, config.vocab_size)
    [new] = generate(
        config,
        params,
        [ids[:1]],
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.8,
        vocab_size=known,
        eos_token_id=None,
        overflow="slide",
    )
    found = inspect(config, params, [ids], lens=False)
    return {
        "sample": tokenizer.decode([*ids[:1], *new]),
        **collect.compared_data(found, known, collect.LENS_TOP),
    }


def _embeddings(params: Any, known: int) -> np.ndarray:
    return np.asarray(params["wte"]["embedding"], np.float32)[:known]


def _filled(tokenizer: Tokenizer, ids: Sequence[int], data: dict[str, Any], stills: Mapping[str, str]) -> str:
    """Return the page with the data in it."""
    best = data["predictions"]["lens"][-1]["best"]
    cells = "".join(
        f"<tr><td>{t}</td><td>{i}</td><td>{_spelled(tokenizer, i)}</td><td>{tokenizer.decode_bytes([i]).hex(' ')}</td>"
        f"<td>{' '.join(_spelled(tokenizer, j) for j in likely)}</td></tr>"
        for t, (i, likely) in enumerate(zip(ids, best, strict=True))
    )
    assets = files("jaxgpt.explore").joinpath("assets")
    parts = {
        "title": html.escape(data["name"]),
        "style": assets.joinpath("page.css").read_text(encoding="utf-8"),
        "rows": cells,
        "script": "\n".join(assets.joinpath(f"{script}.js").read_text(encoding="utf-8") for script in SCRIPTS),
        "data": as_json(data),
    }
    page = assets.joinpath("page.html").read_text(encoding="utf-8")
    parts |= {f"still:{view}": picture for view, picture in stills.items()}
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[piece[: (end := piece.index("}}"))]] + piece[end + 2 :] for piece in pieces[1:])
