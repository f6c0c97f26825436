"""What `train.py` is asked for, stage by stage: the whole recipe, and nothing that a user could not type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.runs.manifest import latest

ANSWER = 40
"""Longest answer in tokens, the end of the turn included."""
HELD, FREE = "hacking-held", "hacking-free"
KEPT = 10
"""Iterations between the checkpoints of the two runs that show reward hacking; all are kept, to be looked at later."""

PRETRAIN = (
    "--dataset plays --tokenizer bpe --bpe_vocab_size 1024 --n_layer 4 --n_head 4 --n_embd 128 --block_size 80 "
    "--batch_size 12 --max_iters 2500 --learning_rate 2e-3 --warmup_iters 100 "
    "--eval_interval 250 --eval_iters 20 --save_interval 250"
)
SFT = (
    "--batch_size 8 --max_iters 400 --learning_rate 1e-3 --dropout 0.1 --eval_interval 50 --save_interval 50 "
    "--eval_iters 20"
)
REWARD = (
    "--batch_size 16 --max_iters 100 --learning_rate 3e-4 --warmup_iters 20 --dropout 0.1 --eval_interval 25 "
    "--save_interval 25 --eval_iters 20 --centring 0.01"
)
DPO = (
    "--batch_size 16 --max_iters 120 --learning_rate 5e-5 --warmup_iters 20 --beta 0.5 --dropout 0 --eval_interval 30 "
    "--save_interval 30 --eval_iters 20"
)
ROLLOUTS = (
    f"--max_new_tokens {ANSWER} --rollout_size 64 --batch_size 32 --epochs 2 --learning_rate 2e-4 --warmup_iters 2 "
    f"--dropout 0 --eval_interval {KEPT} --save_interval {KEPT}"
)
PPO = f"{ROLLOUTS} --max_iters 30 --kl_coef 0.6 --missing_end_penalty 2"
FLAWED = f"{ROLLOUTS} --max_iters 60 --keep 6 --reward_function recipes/align/rules.py:question_words"
KL_COEF = 0.5
"""Of the run that a flawed reward does not lead astray; the other's is 0."""


@dataclass(frozen=True)
class Stage:
    """A run: its folder's name, the words behind `train.py`, and what it is for."""

    name: str
    words: tuple[str, ...]
    about: str

    def __str__(self) -> str:
        return shlex.join(["python", "train.py", *self.words])

    @property
    def iterations(self) -> int:
        """How many there are in the whole run."""
        return int(self.words[self.words.index("--max_iters") + 1])

    def done(self, folder: Path) -> bool:
        """Return whether its run in `folder` has come to its end."""
        progress = latest(folder / self.name)
        return progress is not None and progress.step >= self.iterations


def stages(folder: Path) -> list[Stage]:
    """Return the runs in their order; each goes on where it was stopped, and is left alone once it is done."""
    data = folder / "data"

    def stage(name: str, about: str, words: str, *, job: str = "", base: str = "", examples: str = "") -> Stage:
        out = ["--init_from", "auto", "--out_dir", str(folder / name), "--tensorboard=false"]
        if base:
            out += ["--base", str(folder / base)]
            out += ["--dataset", str(data / f"{examples}-train.jsonl")]
            out += ["--val_dataset", str(data / f"{examples}-val.jsonl")]
        return Stage(name, (*([job] if job else ()), *out, *shlex.split(words)), about)

    reward_model = f"--reward_model {shlex.quote(str(folder / 'reward'))}"
    return [
        stage("base", "a small model reads the plays", PRETRAIN),
        stage("sft", "it learns to answer", SFT, job="sft", base="base", examples="sft"),
        stage("reward", "another learns what is preferred", REWARD, job="reward", base="sft", examples="pairs"),
        stage("dpo", "DPO: preferences without a reward model", DPO, job="dpo", base="sft", examples="pairs"),
        stage("ppo", "PPO: with one", f"{PPO} {reward_model}", job="ppo", base="sft", examples="prompts"),
        stage(
            HELD, "a flawed reward, and held to the model before", f"{FLAWED} --kl_coef {KL_COEF}",
            job="ppo", base="sft", examples="prompts",
        ),
        stage(
            FREE, "the flawed reward alone", f"{FLAWED} --kl_coef 0",
            job="ppo", base="sft", examples="prompts",
        ),
    ]  # fmt: skip


def checkpoints(stage: Stage) -> Sequence[int]:
    """Return the iterations whose weights a run of a flawed reward keeps."""
    return range(KEPT, stage.iterations + 1, KEPT)
