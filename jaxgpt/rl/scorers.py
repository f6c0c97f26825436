"""Scores of answers, by a reward model or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxgpt.chat.records import Prompt
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.commands import called
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.files import sha256
from jaxgpt.hosts import fetch, gather, together
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.outputs import last_scores
from jaxgpt.rl.reward_function import RewardFunction, load_reward_function
from jaxgpt.rl.rollout import Scorer
from jaxgpt.runs.weights import check_tokenizer, find_checkpoint, load_params
from jaxgpt.tokenizers.tokenizer import Tokenizer, load_tokenizer


def function_scorer(
    name: str, prompts: Mapping[tuple[int, ...], Prompt], tokenizer: Tokenizer, stop_ids: Sequence[int]
) -> Scorer:
    """Return the scores of a function of the user's, which the first process of a run asks for all.

    It may draw, or be paid for each answer; and what processes learn from must be the same.

    Args:
        name: module:function or FILE.py:function.
        prompts: ids of each prompt → the prompt.
        tokenizer: the policy's.
        stop_ids: ids that end an answer, which the function is not told of.

    Raises:
        UsageError: there is no such function.
    """
    return partial(_call_function, load_reward_function(name), prompts, tokenizer, stop_ids)


def _call_function(
    function: RewardFunction,
    prompts: Mapping[tuple[int, ...], Prompt],
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    rows: list[list[int]],
    responses: list[list[int]],
) -> np.ndarray:
    answers = [tokenizer.decode(ids[:-1] if ids[-1] in stop_ids else ids) for ids in responses]
    with together():
        scores = function([prompts[tuple(ids)] for ids in rows], answers).tolist() if is_first() else None
    return np.asarray(gather(scores)[0], np.float32)


def reward_fingerprint(reward_model: str | None, reward_function: str | None) -> str:
    """Return a hash of what rewards answers: a model's checkpoint or a function's file; a module's name as it is."""
    if reward_model is not None:
        return sha256(find_checkpoint(Path(reward_model), "best") / "manifest.json")
    where, _, name = str(reward_function).rpartition(":")
    return f"{sha256(Path(where))}:{name}" if where.endswith(".py") else str(reward_function)


def open_reward_model(
    run: Path, policy: str, tokenizer: Tokenizer, *, length: int, ignore_config_change: bool = False
) -> tuple[GPTConfig, Any]:
    """Return a reward model.

    Args:
        run: its folder.
        policy: whose answers are scored, for messages.
        tokenizer: the policy's.
        length: of the longest prompt with the longest answer, in tokens.
        ignore_config_change: see `load_params`.

    Raises:
        UsageError: it is no reward model, or reads other tokens than the policy.
    """
    config, params = load_params(run, ignore_config_change=ignore_config_change)
    check_reward_model(config, run, policy, tokenizer, length)
    return config, params


def model_scorer(
    config: GPTConfig,
    params: Any,
    *,
    length: int,
    batch_size: int,
    dtype: DTypeLike,
    put: Callable[[Any], Any] = lambda rows: rows,
    each: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Scorer:
    """Return a reward model's scores at the answers' last tokens.

    Args:
        config, params: the reward model.
        length: of the longest prompt with the longest answer, in tokens.
        batch_size: answers that are scored at a time; it must divide their number.
        dtype: of activations.
        put, each: see `Rollouts`.
    """
    model = GPT(config, jnp.dtype(dtype))
    scores = each(jax.jit(lambda params, tokens, last: last_scores(model, params, tokens, last)[:, 0]))
    return partial(_score_by_model, lambda rows: scores(params, *put(rows)), length, batch_size)


def _score_by_model(
    scores: Callable[[tuple[np.ndarray, np.ndarray]], Any],
    length: int,
    batch_size: int,
    prompts: list[list[int]],
    responses: list[list[int]],
) -> np.ndarray:
    tokens = np.zeros((len(prompts), length), np.int32)
    last = np.zeros(len(prompts), np.int32)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = [*prompt, *response]
        tokens[row, : len(ids)], last[row] = ids, len(ids) - 1
    starts = range(0, len(tokens), batch_size)
    parts = [scores((tokens[i : i + batch_size], last[i : i + batch_size])) for i in starts]
    return np.concatenate([fetch(part) for part in parts])


def check_reward_model(config: GPTConfig, run: Path, policy: str, tokenizer: Tokenizer, length: int) -> None:
    """Make sure that a reward model can read what the policy writes."""
    if config.labels is None or len(config.labels) != 1:
        raise UsageError(f"--reward_model {run}: no reward model; {called('train')} reward makes one")
    if load_tokenizer(run).fingerprint != tokenizer.fingerprint:
        raise UsageError(f"--reward_model {run}: its tokenizer is another than that of {policy}")
    check_tokenizer(f"--reward_model {run}", config, tokenizer)
    if length > config.n_positions:
        needed = f"prompts and answers have up to {length} tokens"
        raise UsageError(f"--reward_model {run}: its context is {config.n_positions}, but {needed}")


def check_same_template(run: Path, policy: str, tokenizer: Tokenizer) -> None:
    """Make sure that a reward model has learnt from conversations that are laid out as the policy's are."""
    if ChatTemplate.of(tokenizer) != ChatTemplate.load(run):
        raise UsageError(
            f"--reward_model {run}: its chat template is another than that of {policy}, so that it would read "
            f"other conversations than it was trained on; train it with --init_from {policy}"
        )
