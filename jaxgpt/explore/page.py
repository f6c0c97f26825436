"""A model, a tokenizer and a text → one page of HTML."""

from __future__ import annotations

import html
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxgpt.errors import UsageError
from jaxgpt.explore import collect
from jaxgpt.explore.data import as_json, shown
from jaxgpt.inspect.record import inspect
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.tokenizers import Tokenizer

SCRIPTS = ("base.js", "tokenizer.js", "text.js", "attention.js", "predictions.js", "model.js")


def explore(
    config: GPTConfig,
    params: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    name: str = "model",
    run: Path | None = None,
    other: tuple[GPTConfig, Any, Tokenizer] | None = None,
    other_name: str = "",
) -> str:
    """Return a page that shows a model at work on a text, with all that it needs in it.

    Args:
        config, params, tokenizer: the model.
        text: what it reads.
        name: shown as the page's title.
        run: the folder of the run that trained it, for its curves.
        other, other_name: another model with the same tokenizer, whose predictions are shown beside.

    Raises:
        UsageError: fewer than two tokens, more than the context, or another tokenizer.
    """
    ids = tokenizer.encode_part(text)
    if len(ids) < 2:
        raise UsageError(f"text {text!r}: {len(ids)} tokens; there must be two or more to predict one from another")
    if len(ids) > config.n_positions:
        raise UsageError(f"text: {len(ids)} tokens, but the model's context is {config.n_positions}; shorten it")
    known = min(tokenizer.vocab_size, config.vocab_size)
    found = inspect(config, params, [ids])
    data: dict[str, Any] = {
        "name": name,
        "ids": ids,
        "config": {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")},
        "labels": config.labels,
        "tokenizer": collect.tokenizer_data(tokenizer),
        "embeddings": collect.embedding_data(params, ids, known),
        "positions": collect.position_data(config, params, ids),
        "attention": collect.attention_data(found),
        "stream": collect.stream_data(found),
        "predictions": collect.prediction_data(found, known),
        "architecture": collect.architecture_data(config, params),
        "training": collect.training_data(run),
        "scaling": collect.scaling_data(config, count(config)["total"], run),
    }
    if other is not None:
        its_config, its_params, its_tokenizer = other
        if its_tokenizer.fingerprint != tokenizer.fingerprint:
            raise UsageError(f"compare {other_name}: its tokenizer is another than that of {name}")
        if len(ids) > its_config.n_positions:
            raise UsageError(f"text: {len(ids)} tokens, but the context of {other_name} is {its_config.n_positions}")
        theirs = inspect(its_config, its_params, [ids], lens=False)
        data["compared"] = {"name": other_name, **collect.compared_data(theirs, known)}
    # Texts of ids whose bytes the page can't tell itself.
    cells = "".join(
        f"<tr><td>{t}</td><td>{i}</td><td><bdi><code>{html.escape(shown(tokenizer.decode_bytes([i])))}</code></bdi></td>"
        f"<td>{tokenizer.decode_bytes([i]).hex(' ')}</td></tr>"
        for t, i in enumerate(ids)
    )
    assets = files("jaxgpt.explore").joinpath("assets")
    parts = {
        "title": html.escape(name),
        "style": assets.joinpath("page.css").read_text(encoding="utf-8"),
        "rows": cells,
        "script": "\n".join(assets.joinpath(script).read_text(encoding="utf-8") for script in SCRIPTS),
        "data": as_json(data),
    }
    page = assets.joinpath("page.html").read_text(encoding="utf-8")
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[piece[: (end := piece.index("}}"))]] + piece[end + 2 :] for piece in pieces[1:])
