"""PPO and GRPO: prompts → the model's own answers → what a reward model or a function says of them → a policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgpt.cli.rewards import open_scorer, reward_fingerprint
from jaxgpt.cli.run import Job, Record, next_command
from jaxgpt.cli.stage import (
    SHOWN,
    Start,
    job,
    model_of,
    open_start,
    read_examples,
    room,
    show_answers,
    show_curve,
    trained_fields,
    with_labels,
    without_labels,
)
from jaxgpt.errors import UsageError
from jaxgpt.mesh import parameter_shardings, put_batch
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import VALUE
from jaxgpt.model.lora import merge
from jaxgpt.text.encoded import encode_prompts
from jaxgpt.text.examples import epoch_rows
from jaxgpt.text.records import read_prompts
from jaxgpt.train.experience import Experience
from jaxgpt.train.policy import ppo
from jaxgpt.train.ppo import carried, run_ppo
from jaxgpt.train.rollout import Rollout, Rollouts, Scorer
from jaxgpt.train.stages import PPOStageConfig
from jaxgpt.train.task import OuterLoop, Task

MEASURED = ("score", "kl", "response_length", "ended")
# What makes an iteration; where a run goes on, iterations must be what they were.
SHAPE = ("algorithm", "rollout_size", "group_size", "batch_size", "gradient_accumulation_steps", "epochs",
         "max_new_tokens")  # fmt: skip
Ids = Sequence[tuple[int, ...]]


def prepare(flags: PPOStageConfig, folder: Path, record: Record | None) -> Job:
    """Open the model, the prompts, and what rewards the answers."""
    start = open_start(flags, folder, record, fixed=SHAPE)
    if record is None:
        ppo = flags.algorithm == "ppo"
        start = with_labels(start, VALUE, seed=flags.seed, zero=True) if ppo else without_labels(start)
    given = read_examples(flags, read_prompts)
    context = room(flags, start.config)
    limit = context - flags.max_new_tokens
    if limit < 1:
        raise UsageError(f"max_new_tokens {flags.max_new_tokens} leaves no room for prompts in {context} tokens")
    train, val = (encode_prompts(part, start.tokenizer, start.template, length=limit) for part in given)
    prompts = dict(zip((*train, *val), (prompt for part in given for prompt in part), strict=True))
    length = max(map(len, prompts))
    scorer, about = open_scorer(flags, start, prompts, length=length + flags.max_new_tokens)

    def show(params: Any) -> None:
        show_answers(flags, folder, start, val[:SHOWN], params)
        show_curve(folder, next_command("generate", "--compare", start.name, folder, "--prompts", "FILE"))

    return job(
        flags,
        start,
        about=[
            f"data:  {flags.dataset}, {len(train):,} prompts to train on, {len(val):,} to validate on;",
            f"       of up to {length} tokens",
            about,
        ],
        task=partial(make_task, flags, folder, start, train, val, length, scorer),
        show=show,
        keeps_base=True,
        data={"reward": reward_fingerprint(flags)},
    )


def make_task(
    flags: PPOStageConfig, folder: Path, start: Start, train: Ids, val: Ids, length: int, scorer: Scorer, mesh: Mesh
) -> Task:
    """Return what the loop does: iterations of rollouts and updates."""
    model = model_of(flags, start.config)
    put = partial(put_batch, mesh)
    each = flags.prompts_per_rollout

    def prompts(iteration: int) -> Ids:
        return [train[row] for row in epoch_rows(len(train), seed=flags.seed, step=iteration, batch_size=each)]

    def val_prompts(iteration: int) -> Ids:
        return [val[row % len(val)] for row in range(iteration * each, (iteration + 1) * each)]

    def rollouts(prompts: Any, seed: int) -> Rollouts:
        return Rollouts(
            model=model,
            config=flags,
            prompts=prompts,
            prompt_length=length,
            scorer=scorer,
            reference=reference,
            seed=seed,
            stop_ids=start.config.eos_token_ids,
            vocab_size=start.tokenizer.vocab_size,
            put=put,
        )

    # In memory of its own, which no update takes over, and where the policy lies.
    rows_of_the_model = tuple(parameters(start.config))
    reference = jax.device_put(jax.tree.map(jnp.copy, start.params), parameter_shardings(mesh, rows_of_the_model))
    sample, judge = rollouts(prompts, flags.seed), rollouts(val_prompts, flags.seed + 1)

    def policy(whole: Any) -> Any:
        return whole if flags.lora is None else merge(whole, flags.lora)

    def evaluate(whole: Any) -> dict[str, float]:
        found = [judge(policy(whole), flags.kl_coef, i).metrics for i in range(flags.eval_iters)]
        means = {name: float(np.mean([one[name] for one in found])) for name in MEASURED}
        # By what the run is after, not by the score alone, which a policy far from the reference may have at any price.
        worth = means["score"] - (flags.missing_end_penalty or 0) * (1 - means["ended"]) - flags.kl_coef * means["kl"]
        return {"loss": -worth, **means}

    def watch(done: int, rollout: Rollout) -> None:
        if done % flags.eval_interval == 0 or done == 1:
            write_samples(folder / "samples" / f"{done}.md", start, rollout)

    shape = (flags.minibatch_size, length + flags.max_new_tokens - 1)
    rows, numbers = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    values = (numbers, numbers) if flags.algorithm == "ppo" else ()
    example = Experience(rows, rows, numbers, numbers, numbers, numbers, *values)
    outer = OuterLoop(
        run=lambda step, state, until: run_ppo(
            step, state, sample, flags, seed=flags.seed, until=until, put=put, policy=policy, watch=watch
        ),
        evaluate=evaluate,
        updates=flags.updates,
        carried=carried(flags),
    )
    return Task(
        **trained_fields(flags, start, ppo(model, flags, vocab_size=start.tokenizer.vocab_size)),
        batches=lambda step: example,
        evaluation=lambda index: example,
        evaluations=0,
        outer=outer,
    )


def write_samples(file: Path, start: Start, rollout: Rollout, count: int = 8) -> None:
    """Write some of a rollout's answers down as a table."""
    rows = [
        [start.tokenizer.decode(prompt), start.tokenizer.decode(response), f"{score:.3f}"]
        for prompt, response, score in zip(rollout.prompts, rollout.responses, rollout.scores, strict=True)
    ][:count]
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    table = ["| prompt | response | score |", "|---|---|---|", *(f"| {' | '.join(line)} |" for line in lines)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(table) + "\n", encoding="utf-8")
