"""A rollout: prompts → sampled responses → scores → experience, by the policy as it is now.

Everything is a function of (policy, coefficient, iteration), so there is nothing to save. Responses come from the
decoder, whose programs are few (`bucket`); all else has one shape for the whole run, and is compiled once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt.data.batches import Batch
from jaxgpt.data.packing import pad_batch
from jaxgpt.decode.engine import generate
from jaxgpt.errors import UsageError
from jaxgpt.hosts import fetch
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Params
from jaxgpt.progress import Bar, bar
from jaxgpt.rl.advantages import explained_variance, gae, group_advantages, token_rewards, whiten
from jaxgpt.rl.config import PPOConfig
from jaxgpt.rl.experience import Experience
from jaxgpt.rl.kl import estimate_kl
from jaxgpt.rl.policy import check_value_head, view
from jaxgpt.rl.reward_function import check_rewards
from jaxgpt.tokenizers.tokenizer import Tokenizer

Ids = Sequence[Sequence[int]]
Scorer = Callable[[list[list[int]], list[list[int]]], np.ndarray]
"""(prompts, responses), as ids, the end token included → a score for each response."""


@dataclass(frozen=True)
class Rollout:
    """The results of one rollout.

    Attributes:
        prompts, responses: ids, row by row; a response ends with the stop id that ended it.
        scores: (B,) what the scorer gave.
        experience: all that the updates read.
        metrics: means over the responses, by their names; "kl" is in nats for a whole response.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    scores: np.ndarray
    experience: Experience
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Rollouts:
    """Makes them: (policy's parameters, KL coefficient, iteration) → Rollout.

    Attributes:
        model: the policy; for PPO with a head of one label, the value.
        config: what is asked for.
        prompts: iteration → its prompts, `config.prompts_per_rollout` of them.
        prompt_length: no prompt is longer.
        scorer: gives responses their scores.
        reference: the parameters of the model to stay near, in memory that no update takes over.
        seed: of the samples.
        stop_ids: ids that end a response.
        vocab_size: see `Sampling`.
        put: where arrays with a batch's rows are to lie on the devices.
        each: lets each device read rows of its own; see `jaxgpt.mesh.OwnRows`.

    Raises:
        UsageError: prompts and responses don't fit into the model's context, or the config asks for what the model
            does not have.
    """

    model: GPT
    config: PPOConfig
    prompts: Callable[[int], Ids]
    prompt_length: int
    scorer: Scorer
    reference: Params
    seed: int
    stop_ids: Sequence[int] = ()
    vocab_size: int | None = None
    put: Callable[[Any], Any] = lambda rows: rows
    each: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function

    def __post_init__(self) -> None:
        config, context = self.config, self.model.config.n_positions
        if (length := self.prompt_length + config.max_new_tokens) > context:
            raise UsageError(
                f"prompts of up to {self.prompt_length} tokens and max_new_tokens {config.max_new_tokens} make "
                f"{length}, but the model's context is {context}"
            )
        check_value_head(self.model, config)
        if config.missing_end_penalty is not None and not self.stop_ids:
            raise UsageError(f"missing_end_penalty {config.missing_end_penalty}: no id ends a response")

    def __call__(self, params: Params, coefficient: float, iteration: int) -> Rollout:
        """Sample responses, have them scored, and work out what they teach.

        Raises:
            UsageError: a prompt is empty or too long, or there are more or fewer than a rollout has.
            RunError: the scorer did not give a finite number for each response.
        """
        config, prompts = self.config, self._checked_prompts(iteration)
        with bar("rollout: answers", total=config.rollout_size, unit="answers") as shown:
            responses = generate(
                self.model.config,
                params,
                prompts,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                vocab_size=self.vocab_size,
                eos_token_id=self.stop_ids,
                seed=int(np.random.SeedSequence([self.seed, iteration]).generate_state(1)[0]),
                dtype=self.model.dtype,
            )
            shown.set_description("rollout: scores")
            scores = check_rewards("the scorer", self.scorer(prompts, responses), self._names(iteration))
            ended = np.asarray([response[-1] in self.stop_ids for response in responses])
            given = scores - np.where(ended, 0, config.missing_end_penalty or 0).astype(np.float32)

            shown.set_description("rollout: log-probabilities")
            batch = self._lay_out(prompts, responses)
            log_probs, values, reference = self._compare(params, batch, shown)
        found = appraise(config, batch, log_probs, values, reference, given, np.float32(coefficient))
        experience, metrics = jax.device_get(found)
        lengths = np.asarray([len(response) for response in responses])
        metrics |= {"score": scores.mean(), "response_length": lengths.mean(), "ended": ended.mean()}
        return Rollout(prompts, responses, scores, experience, {name: float(x) for name, x in metrics.items()})

    def _checked_prompts(self, iteration: int) -> list[list[int]]:
        """Return the prompts of all rows: those to the same prompt are neighbours."""
        prompts = [list(prompt) for prompt in self.prompts(iteration)]
        if len(prompts) != self.config.prompts_per_rollout:
            raise UsageError(f"{len(prompts)} prompts, but rollouts are of {self.config.prompts_per_rollout}")
        for n, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.prompt_length:
                raise UsageError(
                    f"prompt {n} of iteration {iteration} has {len(prompt)} tokens; "
                    f"it must have from 1 to {self.prompt_length}"
                )
        return [list(prompt) for prompt in prompts for _ in range(self.config.responses_per_prompt)]

    def _names(self, iteration: int) -> list[str]:
        each = self.config.responses_per_prompt
        return [f"{row // each} of iteration {iteration}" for row in range(self.config.rollout_size)]

    def _lay_out(self, prompts: list[list[int]], responses: list[list[int]]) -> Batch:
        documents = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        weights = [[0.0] * len(p) + [1.0] * len(r) for p, r in zip(prompts, responses, strict=True)]
        return pad_batch(documents, length=self.prompt_length + self.config.max_new_tokens - 1, weights=weights)

    def _compare(self, params: Params, batch: Batch, shown: Bar) -> tuple[Any, Any, Any]:
        """Return the targets' log-probabilities and values under the policy, and log-probabilities under the reference.

        A part of the rows is read at a time: logits are large.
        """
        parts, count = [], self.config.batch_size
        policy, reference = self._readers
        for start in range(0, len(batch.tokens), count):
            rows = self.put((batch.tokens[start : start + count], batch.targets[start : start + count]))
            parts.append(fetch((*policy(params, *rows), reference(self.reference, *rows)[0])))
            shown.update(len(rows[0]))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    @cached_property
    def _readers(self) -> Sequence[Callable[..., Any]]:
        # A reference that was a policy has a value head, which nobody asks; others have none.
        models = self.model, GPT(replace(self.model.config, labels=None), self.model.dtype)
        how = {"temperature": self.config.temperature, "vocab_size": self.vocab_size}
        return [self.each(partial(read, model, **how)) for model in models]


@partial(jax.jit, static_argnames=("model", "temperature", "vocab_size"))
def read(
    model: GPT,
    params: Params,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    *,
    temperature: float,
    vocab_size: int | None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Return the targets' log-probabilities, and values."""
    found = view(model, params, tokens, targets, temperature=temperature, vocab_size=vocab_size)
    return found.log_probs, found.values


@partial(jax.jit, static_argnames=("config",))
def appraise(
    config: PPOConfig,
    batch: Batch,
    log_probs: Float[Array, "B T"],
    values: Float[Array, "B T"] | None,
    reference: Float[Array, "B T"],
    scores: Float[Array, " B"],
    coefficient: Float[Array, ""],
) -> tuple[Experience, dict[str, Array]]:
    """Turn scores, and what policy and reference say of the responses, into experience and metrics."""
    mask = jnp.asarray(batch.weights) > 0
    log_probs, reference = (jnp.where(mask, x, 0) for x in (log_probs, reference))
    kl = estimate_kl(config.kl_estimator, log_probs, reference)
    known = partial(Experience, batch.tokens, batch.targets, batch.weights, log_probs, reference)
    metrics = {"kl": kl.sum(axis=1).mean(), "kl_coef": coefficient}
    if config.algorithm == "grpo":
        advantages = group_advantages(scores, config.responses_per_prompt)[:, None]
        return known(jnp.where(mask, advantages, 0)), {**metrics, "reward": scores.mean()}
    assert values is not None
    rewards, values = token_rewards(scores, kl, mask, coefficient), jnp.where(mask, values, 0)
    metrics["reward"] = rewards.sum(axis=1).mean()
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift=False)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    metrics["explained_variance"] = explained_variance(values, returns, mask)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return known(advantages, values, returns), metrics


def mean_metrics(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Return the means over rollouts of their metrics, by their names."""
    found = [rollout.metrics for rollout in rollouts]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def write_samples(file: Path, tokenizer: Tokenizer, rollout: Rollout, count: int = 8) -> None:
    """Write some of a rollout's answers down as a table."""
    rows = [
        [tokenizer.decode(prompt), tokenizer.decode(response), f"{score:.3f}"]
        for prompt, response, score in zip(rollout.prompts, rollout.responses, rollout.scores, strict=True)
    ][:count]
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    table = ["| prompt | response | score |", "|---|---|---|", *(f"| {' | '.join(line)} |" for line in lines)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(table) + "\n", encoding="utf-8")
