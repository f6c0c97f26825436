"""Several data sets → one corpus, a mixture of theirs in one tokenizer's ids."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgpt import checks
from jaxgpt.data.hub import is_hub
from jaxgpt.data.tokens.mixture import Mixture, proportions
from jaxgpt.data.tokens.shards import Tokens
from jaxgpt.data.tokens.token_folders import MADE, are_tokens
from jaxgpt.errors import UsageError
from jaxgpt.tokenizers.tokenizer import Tokenizer

WEIGHT = "a positive number"


def open_mixture(
    datasets: Sequence[str | Path],
    weights: Sequence[float] | None,
    tokenizer: str | Path | Tokenizer | None,
    load: Callable[[str | Path, str | Path | Tokenizer | None], Any],
    make: Callable[[Sequence[str | Path], str | None], str | Tokenizer],
    *,
    shared_val: bool,
) -> tuple[str, Mixture, Mixture | Tokens, Tokenizer, tuple[str, ...]]:
    """Open data sets as one corpus, whose fields are returned.

    Their tokenizer is the one asked for; or that of the data sets that are tokens, which must agree; or else the first
    data set's. One that is made from text is made from all of theirs.

    Args:
        datasets: at least two.
        weights: of each, see `check_weights`; None for those of their tokens to train on.
        tokenizer: see `load_corpus`.
        load: data set and tokenizer → its corpus.
        make: data sets that are texts, and the kind of tokenizer that is asked for, if any → their tokenizer.
        shared_val: whether all have the same ids to validate on.

    Raises:
        UsageError: tokenizers disagree.
    """
    found = list(map(Path, datasets))
    if tokenizer in (None, *MADE) and not any(map(are_tokens, found)):
        tokenizer = make(datasets, None if tokenizer is None else str(tokenizer))
    # The one that decides on the tokenizer comes first.
    order = sorted(range(len(datasets)), key=lambda i: (not are_tokens(found[i]), i))
    corpora: dict[int, Any] = {}
    for i in order:
        decided = corpora[order[0]].tokenizer if corpora else tokenizer
        keeps = are_tokens(found[i]) and tokenizer is None
        corpora[i] = load(datasets[i], None if keeps else decided)
        if isinstance(decided, Tokenizer) and corpora[i].tokenizer.fingerprint != decided.fingerprint:
            its, first = corpora[i].tokenizer, datasets[order[0]]
            raise UsageError(
                f"dataset {datasets[i]}: its tokenizer is {its.name!r}, another one than {decided.name!r} of {first}; "
                "a mixture has one"
            )
    several = [corpora[i] for i in range(len(datasets))]
    names = _names(datasets)
    train = proportions(names, [corpus.train for corpus in several], weights)
    val = several[0].val
    if not shared_val:
        val = proportions(names, [corpus.val for corpus in several], train.weights)
    notes = tuple(dict.fromkeys(note for corpus in several for note in corpus.notes))
    return " + ".join(map(str, datasets)), train, val, several[0].tokenizer, notes


def check_weights(weights: Any, count: int) -> list[float]:
    """Return the weights of so many data sets.

    Raises:
        UsageError: they are not as many, or not all positive numbers.
    """
    if not checks.several(weights):
        raise checks.refusal("dataset_weights", weights, f"{WEIGHT} for each dataset")
    found = [checks.real("dataset_weights", weight, WEIGHT) for weight in itertools.islice(weights, count + 1)]
    for weight in found:
        if not 0 < weight < math.inf:
            raise checks.refusal("dataset_weights", weight, WEIGHT)
    if len(found) != count:
        given = f"more than {count}" if len(found) > count else len(found)
        raise UsageError(f"dataset_weights: {given} for {count} datasets; there must be one for each of several")
    return found


def _names(datasets: Sequence[str | Path]) -> list[str]:
    """Return a short name for each data set, all different."""
    names: list[str] = []
    for dataset in map(str, datasets):
        path = Path(dataset)
        name = path.name if is_hub(dataset) or path.is_dir() else path.stem
        name = re.sub(r"[^\w.-]+", "-", name)
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names
