"""PPO and GRPO: prompts → the model's own answers → what a reward model or a function says of them → a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxgpt import chat, model, objectives, rl, train
from jaxgpt.devices import compute_dtype, is_first
from jaxgpt.errors import UsageError
from jaxgpt.flags import MOST, Count, CountOrZero, PathName, Positive, flag
from jaxgpt.model.config import VALUE
from jaxgpt.rl.config import PPOConfig
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import FILES, SHOWN_PROMPTS, FineTune, FineTuneConfig
from jaxgpt.train.config import SampleConfig

MEASURED = ("score", "kl", "response_length", "ended")
"""What an evaluation measures, beside the loss."""


@dataclass(frozen=True)
class PPOStageConfig(PPOConfig, SampleConfig, FineTuneConfig):
    """Learning from rewards for the model's own answers (Schulman et al. 2017), or by GRPO (Shao et al. 2024)."""

    out_dir: PathName = flag("out-ppo", "the run's folder", on_resume="of the command", per_host=True)
    dataset: PathName | None = flag(None, f"prompts: {FILES}; also .txt with one a line", per_host=True)
    reward_model: PathName | None = flag(
        None, "a run's folder of train.py reward, which scores the answers", per_host=True, group="objective"
    )
    reward_function: PathName | None = flag(
        None,
        "in its place, module:function or FILE.py:function of (prompts, answers) that gives a number for each; "
        "with a parameter conversations it is given them whole",
        per_host=True,
        group="objective",
        about_run=True,
    )
    max_iters: Count = flag(100, "iterations in the whole run, each a rollout and epochs of updates")
    learning_rate: Positive = flag(5e-6, "peak learning rate, reached after warmup")
    warmup_iters: CountOrZero | None = flag(None, "iterations of linear warmup; none: 5 % of max_iters")
    eval_interval: Count = flag(10, "iterations between evaluations")
    eval_iters: Count = flag(1, "rollouts in an evaluation, of validation prompts, always with the same seeds")
    log_interval: Count = flag(1, "iterations between rows of metrics")
    save_interval: Count = flag(10, "iterations between checkpoints")

    def __post_init__(self) -> None:
        PPOConfig.__post_init__(self)
        FineTuneConfig.__post_init__(self)
        for name, iterations in (("max_iters", self.max_iters), ("lr_decay_iters", self.decay_iters)):
            if iterations * self.updates > MOST:
                many = f"{name} {iterations} of {self.updates} updates each"
                raise UsageError(f"{many} are {iterations * self.updates} updates; there may be at most {MOST}")
        if (self.reward_model is None) == (self.reward_function is None):
            raise UsageError("one of --reward_model and --reward_function must say what answers are worth")
        if self.dropout:
            raise UsageError(f"dropout is {self.dropout}; ppo compares probabilities, and drops nothing: leave it out")
        if self.lora_dropout:
            raise UsageError(f"lora_dropout is {self.lora_dropout}; ppo compares probabilities: leave it out")


class PPO(FineTune[PPOStageConfig]):
    """Answers of the model's own, of which rewarded ones become likelier. An iteration is a rollout and its updates.

    Attributes:
        examples: the prompts' ids.
        length: of the longest prompt.
    """

    name = "ppo"
    Flags = PPOStageConfig
    keeps_base = True

    def open(self, folder: Path, record: Record | None) -> None:
        flags, self.folder = self.flags, folder
        self.open_base(folder, record)
        if record is None and flags.algorithm == "ppo":
            self.add_labels(VALUE, zero=True)
        elif record is None:
            self.remove_labels()
        limit = self.room - flags.max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens {flags.max_new_tokens} leaves no room for prompts in {self.room} tokens")
        encoded = {
            part: chat.encode_prompts(prompts, self.tokenizer, self.template, length=limit, too_long=flags.too_long)
            for part, prompts in zip(("train", "val"), self.read(chat.read_prompts), strict=True)
        }
        self.examples = {part: [ids for ids, _ in found] for part, found in encoded.items()}
        prompts = {ids: prompt for found in encoded.values() for ids, prompt in found}
        self.length = max(map(len, prompts))
        self.make_scorer = self._open_scorer(prompts)
        self.updates_per_iteration = flags.updates
        sizes = f"{len(self.examples['train']):,} prompts to train on, {len(self.examples['val']):,} to validate on"
        about = [
            f"data:  {flags.dataset}, {sizes};",
            f"       of up to {self.length} tokens",
            f"score: of {flags.reward_model or flags.reward_function}",
        ]
        self.finish_opening(about, {"reward": rl.reward_fingerprint(flags.reward_model, flags.reward_function)})

    def _open_scorer(self, prompts: dict[tuple[int, ...], chat.Prompt]) -> Callable[[train.Trainer], rl.Scorer]:
        """Return what makes the scorer, on a trainer's devices."""
        flags = self.flags
        if flags.reward_function is not None:
            scorer = rl.function_scorer(flags.reward_function, prompts, self.tokenizer, self.config.eos_token_ids)
            return lambda trainer: scorer
        run = Path(str(flags.reward_model))
        if not all(isinstance(prompt.prompt, str) for prompt in prompts.values()):
            rl.check_same_template(run, self.source, self.tokenizer)
        config, params = rl.open_reward_model(
            run,
            self.source,
            self.tokenizer,
            length=self.length + flags.max_new_tokens,
            ignore_config_change=flags.ignore_config_change,
        )
        return partial(self._model_scorer, config, params)

    def _model_scorer(self, config: model.GPTConfig, params: Any, trainer: train.Trainer) -> rl.Scorer:
        flags, own = self.flags, trainer.own_rows(config)
        return rl.model_scorer(
            config,
            own.place(params),
            length=self.length + flags.max_new_tokens,
            batch_size=flags.batch_size,
            dtype=compute_dtype(flags.dtype),
            put=self.put,
            each=own.each,
        )

    def make_objective(self, model: Any) -> objectives.Objective:
        return rl.ppo(model, self.flags, vocab_size=self.tokenizer.vocab_size)

    def carried(self) -> Any:
        return rl.carried(self.flags)

    def batch(self, step: int, *, shard: int = 0, num_shards: int = 1) -> rl.Experience:
        """Return an empty minibatch, which only shows the shape of those that rollouts give."""
        rows = self.flags.minibatch_size // num_shards
        length = self.length + self.flags.max_new_tokens - 1
        return rl.empty_experience(rows, length, values=self.flags.algorithm == "ppo")

    def before_loop(self, trainer: train.Trainer) -> None:
        import jax

        from jaxgpt.mesh import share_out

        own = trainer.own_rows(self.config)  # of the policy without adapters
        # In memory of its own, which no update takes over.
        reference = jax.tree.map(jax.numpy.copy, own.place(self.params))
        self.put = partial(share_out, trainer.mesh)  # each process has all rows
        scorer = self.make_scorer(trainer)
        self.rollouts, self.val_rollouts = (
            rl.Rollouts(
                model=self.build_model(),
                config=self.flags,
                prompts=prompts,
                prompt_length=self.length,
                scorer=scorer,
                reference=reference,
                seed=seed,
                stop_ids=self.config.eos_token_ids,
                vocab_size=self.tokenizer.vocab_size,
                put=self.put,
                each=own.each,
            )
            for prompts, seed in ((self.prompts, self.flags.seed), (self.val_prompts, self.flags.seed + 1))
        )

    def updates(
        self, trainer: train.Trainer, state: train.TrainState
    ) -> Iterator[tuple[int, train.TrainState, train.StepMetrics]]:
        """Yield iterations, not updates: roll out, then epochs of the same compiled step over what that yielded."""
        return rl.run_ppo(
            trainer.step,
            state,
            self.rollouts,
            self.flags,
            seed=self.flags.seed,
            until=self.flags.max_iters,
            put=self.put,
            policy=self.policy,
            watch=self.watch,
        )

    def evaluate(self, trainer: train.Trainer, params: Any) -> dict[str, float]:
        """Return what rollouts of validation prompts measure.

        The loss is what the run is after, not the score alone, which a policy far from the reference may have at any
        price.
        """
        flags, policy = self.flags, self.policy(params)
        means = rl.mean_metrics(self.val_rollouts(policy, flags.kl_coef, i) for i in range(flags.eval_iters))
        worth = means["score"] - (flags.missing_end_penalty or 0) * (1 - means["ended"]) - flags.kl_coef * means["kl"]
        return {"loss": -worth, **{name: means[name] for name in MEASURED}}

    def prompts(self, iteration: int) -> list[tuple[int, ...]]:
        """Return an iteration's prompts."""
        prompts, each = self.examples["train"], self.flags.prompts_per_rollout
        rows = chat.epoch_rows(len(prompts), seed=self.flags.seed, step=iteration, batch_size=each)
        return [prompts[row] for row in rows]

    @property
    def evaluated(self) -> int:
        return self.flags.eval_iters * self.flags.prompts_per_rollout

    def val_prompts(self, index: int) -> list[tuple[int, ...]]:
        """Return the prompts of a rollout of an evaluation."""
        prompts, each = self.examples["val"], self.flags.prompts_per_rollout
        rows = chat.eval_sample(len(prompts), self.evaluated)
        return [prompts[row] for row in rows[index * each : (index + 1) * each]]

    def watch(self, done: int, rollout: rl.Rollout) -> None:
        """Write some of a rollout's answers down, as often as the run is evaluated."""
        if is_first() and (done % self.flags.eval_interval == 0 or done == 1):
            rl.write_samples(self.folder / "samples" / f"{done}.md", self.tokenizer, rollout)

    def policy(self, params: Any) -> Any:
        """Return the policy's parameters, with adapters merged, from all that the state has."""
        return params if self.flags.lora is None else model.merge(params, self.flags.lora)

    def excerpt(self) -> Sequence[int]:
        return self.examples["val"][0]

    @property
    def shown_prompts(self) -> list[tuple[int, ...]]:
        return self.examples["val"][:SHOWN_PROMPTS]

    def show(self, folder: Path, params: Any) -> None:
        """Print some answers."""
        self.show_answers(folder, params)
        show_curve(folder, self.next_answers(folder))
