"""How good a run is on held-out prompts and pairs: sampled answers, judged by the rules, and their divergence."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.chat.encoded import encode_pairs, encode_prompts
from jaxgpt.chat.reading import read_pairs, read_prompts
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.data.batches import Batch
from jaxgpt.data.packing import pad_batch
from jaxgpt.decode.engine import generate
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.outputs import last_scores, sequence_log_probs
from jaxgpt.runs.weights import Which, load_params
from jaxgpt.tokenizers.tokenizer import load_tokenizer
from recipes.align.commands import ANSWER
from recipes.align.rules import END, distinct_words, question_words, score, well_formed, win_rate

SAMPLES = 40
"""Answers to each prompt."""
TOGETHER = 24 * SAMPLES
"""Answers that are made at a time."""
PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Answers:
    """What a model answers to the held-out prompts, at temperature 1.

    Attributes:
        prompts: the users' texts.
        texts: the answers to each, with the token that ends the turn where there is one.
        kl: mean divergence of an answer from the SFT model, in nats; None where that is not asked for.
    """

    prompts: list[str]
    texts: list[list[str]]
    kl: float | None

    @property
    def scores(self) -> list[list[float]]:
        """Each answer's, by the rule."""
        return [[score(prompt, text) for text in some] for prompt, some in zip(self.prompts, self.texts, strict=True)]

    @property
    def rule(self) -> float:
        """How many answers the rule gives 1."""
        return float(np.mean(self.scores))

    @property
    def format(self) -> float:
        """How many answers are well-formed."""
        told = zip(self.prompts, self.texts, strict=True)
        return float(np.mean([well_formed(prompt, text) for prompt, some in told for text in some]))

    @property
    def distinct(self) -> float:
        """How many of an answer's words are different ones, in the mean."""
        return float(np.mean([distinct_words(text) for some in self.texts for text in some]))

    @property
    def flawed(self) -> float:
        """The flawed reward's mean."""
        return float(np.mean([question_words([""], [text]) for some in self.texts for text in some]))

    def wins(self, others: Answers) -> float:
        """Return the win rate over another model's answers."""
        return win_rate(self.scores, others.scores)


def answers(run: Path, prompts: Path, *, seed: int, reference: Path | None = None, which: Which = "best") -> Answers:
    """Let a run's model answer prompts.

    Args:
        run: its folder.
        prompts: a file of them.
        seed: of the samples; models that are compared get different ones.
        reference: the run to measure the divergence from.
        which: the checkpoint.
    """
    config, params = load_params(run, which)
    tokenizer = load_tokenizer(run)
    template = ChatTemplate.of(tokenizer)
    told = read_prompts(prompts)
    texts = [one.prompt if isinstance(one.prompt, str) else one.prompt[-1].content for one in told]
    if template is None:
        # A model that has only read plays knows no turns: a prompt is a paragraph, and so is the answer.
        ids = [tuple(tokenizer.encode(f"{text}{PARAGRAPH}")) for text in texts]
    else:
        ids = [ids for ids, _ in encode_prompts(told, tokenizer, template, length=config.n_positions - ANSWER)]
    rows = [list(prompt) for prompt in ids for _ in range(SAMPLES)]
    new: list[list[int]] = []
    for i in range(0, len(rows), TOGETHER):
        new += generate(
            config,
            params,
            rows[i : i + TOGETHER],
            max_new_tokens=ANSWER,
            temperature=1.0,
            vocab_size=tokenizer.vocab_size,
            seed=seed,
        )
    said = [tokenizer.decode(answer) for answer in new]
    if template is None:
        said = [f"{text.partition(PARAGRAPH)[0]}{END}" for text in said]
    kl = None
    if reference is not None:
        ours, theirs = (log_probs(*model, rows, new) for model in ((config, params), load_params(reference)))
        kl = float((ours - theirs).mean())
    return Answers(texts, [said[i : i + SAMPLES] for i in range(0, len(said), SAMPLES)], kl)


def log_probs(config: GPTConfig, params: Any, prompts: list[list[int]], new: list[list[int]]) -> np.ndarray:
    """Return the log-probability of each answer."""
    documents = [[*prompt, *answer] for prompt, answer in zip(prompts, new, strict=True)]
    weights = [[0.0] * len(prompt) + [1.0] * len(answer) for prompt, answer in zip(prompts, new, strict=True)]
    batch = pad_batch(documents, length=config.n_positions, weights=weights)
    model = GPT(replace(config, labels=None))  # a policy that PPO trained has a value head beside
    parts = [jax.tree.map(lambda x, i=i: x[i : i + SAMPLES], batch) for i in range(0, len(documents), SAMPLES)]
    return np.concatenate([np.asarray(_log_probs(model, params, rows)) for rows in parts])


@partial(jax.jit, static_argnames=("model",))
def _log_probs(model: GPT, params: Any, rows: Batch) -> jax.Array:
    return sequence_log_probs(model, params, rows.tokens, rows.targets, rows.weights)


def accuracies(run: Path, pairs: Path) -> dict[str, tuple[int, int]]:
    """Return, for each kind of pair, how many pairs a reward model gets right, and of how many."""
    config, params = load_params(run)
    tokenizer = load_tokenizer(run)
    encoded = encode_pairs(read_pairs(pairs), tokenizer, ChatTemplate.of(tokenizer), length=config.n_positions)
    model = GPT(config)
    documents = [answer.ids for pair in encoded for answer in (pair.chosen, pair.rejected)]
    tokens = np.zeros((len(documents), config.n_positions), np.int32)
    for row, ids in enumerate(documents):
        tokens[row, : len(ids)] = ids
    last = np.asarray([len(ids) - 1 for ids in documents], np.int32)
    rewards = np.asarray(jax.jit(lambda params: last_scores(model, params, tokens, last))(params))[:, 0].reshape(-1, 2)
    kinds = [json.loads(line)["kind"] for line in pairs.read_text(encoding="utf-8").splitlines()]
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, (chosen, rejected) in zip(kinds, rewards, strict=True):
        right[kind].append(bool(chosen > rejected))
    return {kind: (sum(found), len(found)) for kind, found in right.items()}
