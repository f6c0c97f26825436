"""What answers are worth: the score of a reward model, or of a function of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxgpt.cli.sources import check_tokenizer
from jaxgpt.cli.stage import Start, model_of
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.text.chat import ChatTemplate
from jaxgpt.text.records import Prompt
from jaxgpt.text.tokenizers import load_tokenizer
from jaxgpt.train.manifest import sha256
from jaxgpt.train.outputs import last_scores
from jaxgpt.train.reward_function import load_reward_function
from jaxgpt.train.rollout import Scorer
from jaxgpt.train.stages import PPOStageConfig
from jaxgpt.train.weights import find_checkpoint, load_params


def open_scorer(
    flags: PPOStageConfig, start: Start, prompts: Mapping[tuple[int, ...], Prompt], *, length: int
) -> tuple[Scorer, str]:
    """Return what gives answers their scores, and a line about it.

    Args:
        flags: name a reward model or a function.
        start: the policy.
        prompts: ids of each prompt → the prompt.
        length: of the longest prompt with the longest answer, in tokens.

    Raises:
        UsageError: there is no such model or function, or the model reads other tokens than the policy.
    """
    if flags.reward_model is not None:
        run = Path(flags.reward_model)
        if not all(isinstance(prompt.prompt, str) for prompt in prompts.values()):
            check_template(start, run)
        return model_scorer(flags, start, run, length), f"score: of {run}"
    assert flags.reward_function is not None
    function, tokenizer, ends = load_reward_function(flags.reward_function), start.tokenizer, start.config.eos_token_ids

    def score(rows: list[list[int]], responses: list[list[int]]) -> np.ndarray:
        answers = [tokenizer.decode(ids[:-1] if ids[-1] in ends else ids) for ids in responses]
        return function([prompts[tuple(ids)] for ids in rows], answers)

    return score, f"score: of {flags.reward_function}"


def check_template(start: Start, run: Path) -> None:
    """Make sure that a reward model has learnt from conversations that are laid out as the policy's are."""
    if start.template != ChatTemplate.load(run):
        raise UsageError(
            f"--reward_model {run}: its chat template is another than that of {start.name}, so that it would read "
            f"other conversations than it was trained on; train it with --init_from {start.name}"
        )


def reward_fingerprint(flags: PPOStageConfig) -> str:
    """Return a hash of what rewards answers: a model's checkpoint or a function's file; a module's name as it is."""
    if flags.reward_model is not None:
        return sha256(find_checkpoint(Path(flags.reward_model), "best") / "manifest.json")
    where, _, name = str(flags.reward_function).rpartition(":")
    return f"{sha256(Path(where))}:{name}" if where.endswith(".py") else str(flags.reward_function)


def model_scorer(flags: PPOStageConfig, start: Start, run: Path, length: int) -> Scorer:
    """Return a reward model's scores at the answers' last tokens."""
    config, params = load_params(run, ignore_config_change=flags.ignore_config_change)
    check_reward_model(config, start, run, length)
    model = model_of(flags, config)
    scores = jax.jit(lambda params, tokens, last: last_scores(model, params, tokens, last)[:, 0])

    def score(prompts: list[list[int]], responses: list[list[int]]) -> np.ndarray:
        tokens = np.zeros((len(prompts), length), np.int32)
        last = np.zeros(len(prompts), np.int32)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids = [*prompt, *response]
            tokens[row, : len(ids)], last[row] = ids, len(ids) - 1
        size = flags.batch_size
        parts = [scores(params, tokens[i : i + size], last[i : i + size]) for i in range(0, len(tokens), size)]
        return np.concatenate([np.asarray(part) for part in parts])

    return score


def check_reward_model(config: GPTConfig, start: Start, run: Path, length: int) -> None:
    """Make sure that a reward model can read what the policy writes."""
    if config.labels is None or len(config.labels) != 1:
        raise UsageError(f"--reward_model {run}: no reward model; train.py reward makes one")
    if load_tokenizer(run).fingerprint != start.tokenizer.fingerprint:
        raise UsageError(f"--reward_model {run}: its tokenizer is another than that of {start.name}")
    check_tokenizer(f"--reward_model {run}", config, start.tokenizer)
    if length > config.n_positions:
        needed = f"prompts and answers have up to {length} tokens"
        raise UsageError(f"--reward_model {run}: its context is {config.n_positions}, but {needed}")
