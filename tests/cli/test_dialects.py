"""What users of other tools type, as they type it."""

import pickle
import re

import numpy as np
import pytest

from jaxgpt import notes
from jaxgpt.cli import generate, train
from jaxgpt.cli.dialects import UNUSED, translate
from jaxgpt.cli.generate import Options
from jaxgpt.errors import UsageError
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.stages.sft import SFTConfig
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.optimizer import schedule

CONFIG = """
# train a miniature character-level shakespeare model
import time
out_dir = 'out-shakespeare-char'
eval_interval = 5 * 2
always_save_checkpoint = False
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt-' + str(time.time())
dataset = 'shakespeare_char'
eval_iters = 2
batch_size = 4
block_size = 16
n_layer = 1
n_head = 2
n_embd = 2 ** 3 if False else 16
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Data and a config as nanoGPT's `prepare.py` and its repository leave them; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    notes.note.cache_clear()
    chars = "\nabcdefgh"
    ids = np.arange(2000, dtype=np.uint16) % len(chars)
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    for name in ("train", "val"):
        ids.tofile(tmp_path / "data" / "shakespeare_char" / f"{name}.bin")
    stoi = {char: index for index, char in enumerate(chars)}
    meta = {"vocab_size": len(chars), "stoi": stoi, "itos": dict(enumerate(chars))}
    (tmp_path / "data" / "shakespeare_char" / "meta.pkl").write_bytes(pickle.dumps(meta))
    (tmp_path / "config").mkdir()
    text = CONFIG.replace("2 ** 3 if False else 16", "8 + 8")
    (tmp_path / "config" / "train_shakespeare_char.py").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_a_run_as_the_readme_of_nanogpt_has_it(home, capsys):
    words = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--log_interval=1"]
    words += ["--max_iters=10", "--lr_decay_iters=10", "--dropout=0.0", "--grad_clip=0.0", "--decay_lr=False"]
    train.main([*words, "--tensorboard=false", "--sample_tokens=5"])
    error = capsys.readouterr().err
    for name in ("compile", "always_save_checkpoint", "wandb_run_name"):
        assert error.count(f"note: --{name} has no meaning here: ") == 1
    before = sorted((home / "out-shakespeare-char").rglob("*"))
    train.main([*words[:3], "--eval_only", "--init_from=resume", "--max_iters=10"])
    assert re.search("step 10: train loss [0-9.]+, val loss [0-9.]+", capsys.readouterr().out)
    assert sorted((home / "out-shakespeare-char").rglob("*")) == before
    generate.main(["--out_dir=out-shakespeare-char", "--init_from=resume", "--start=ab", "--max_new_tokens=3"])
    assert capsys.readouterr().out.startswith("ab")


def test_evaluation_of_a_new_model_leaves_nothing(home, capsys):
    train.main(["config/train_shakespeare_char.py", "--eval_only=True"])
    assert re.search("new: train loss [0-9.]+, val loss [0-9.]+", capsys.readouterr().out)
    assert not (home / "out-shakespeare-char").exists()


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["--wandb_log=True", "--wandb_project=owt"], ["--wandb=owt"]),
        (["--wandb_log=False", "--wandb_project=owt"], []),
        (["--device=cuda:0", "--dtype=float16"], ["--device=cuda", "--dtype=bfloat16"]),
        (["--backend=nccl", "--compile"], []),
        (["--grad_clip=0.5"], ["--grad_clip=0.5"]),
        (["--dataset", "--compile"], ["--dataset", "--compile"]),
        (["--grad_clip", "0.0", "--compile", "False", "--seed", "2"], ["--grad_clip=none", "--seed", "2"]),
        (["--eval_only", "True"], ["--eval_only", "True"]),
        (["--lr=1e-3", "--max-steps", "5"], ["--learning_rate=1e-3", "--max_iters", "5"]),
        (["--warmup_steps", "0", "--output_dir", "x"], ["--warmup_iters", "0", "--out_dir", "x"]),
        (["--bf16", "--report_to", "none"], ["--tensorboard=False", "--dtype=bfloat16"]),
        (["--lr_scheduler_type", "constant", "--optim", "adamw_torch"], ["--decay_lr=false"]),
        (["--lr_scheduler_type=linear", "--optim", "sgd"], ["--lr_scheduler_type=linear", "--optim=sgd"]),
        (["--", "--lr"], ["--", "--lr"]),
        (["run.toml", "--seed=1"], ["--config", "run.toml", "--seed=1"]),
    ],
)
def test_flags_of_others_are_ours(words, ours):
    assert translate(words, PretrainConfig) == ours


def test_names_of_others_are_told_in_one_note(capsys):
    notes.note.cache_clear()
    translate(["--model_name_or_path", "gpt2", "--dataset_name=x", "--use_peft", "--lora_r", "4"], SFTConfig)
    assert capsys.readouterr().err == (
        "note: by our names --model_name_or_path is --base, --dataset_name is --dataset, --lora_r is --lora_rank\n"
    )
    assert translate(["--use_peft"], SFTConfig) == ["--lora_rank=16"]


@pytest.mark.parametrize("flags", [SFTConfig, Options])
def test_notes_name_no_other_command(capsys, flags):
    notes.note.cache_clear()
    translate([f"--{name}=x" for name in UNUSED], flags)
    assert UNUSED and "train.py" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--num_train_epochs", "3"], "did you mean '--max_iters'?"),
        (["--learning_rat", "1"], "did you mean '--learning_rate'?"),
        (["--hidden_size=3"], "did you mean '--n_embd'?"),
        (["--push_to_hub"], "unknown flag --push_to_hub"),
        (["--optim=sgd"], "unknown flag --optim"),
    ],
)
def test_suggestions_lead_to_what_is_meant(capsys, words, hint):
    with pytest.raises(SystemExit, match="2"):
        train.main(words)
    error = capsys.readouterr().err
    assert hint in error and (hint.startswith("did") or "did you mean" not in error)


@pytest.mark.parametrize("line", ["print(1)", "seed = open('x')", "seed = 9 ** 9", "from os import sep", "sed = 1"])
def test_a_config_is_read_and_never_run(tmp_path, line):
    path = tmp_path / "bad.py"
    path.write_text(f"batch_size = 2\n{line}\n")
    with pytest.raises(UsageError, match="bad.py, line 2: "):
        translate([str(path)], PretrainConfig)


def test_without_decay_the_learning_rate_is_the_peak_throughout():
    rates = schedule(OptimizerConfig(max_iters=100, learning_rate=1e-3, decay_lr=False))
    assert [float(rates(step)) for step in (0, 5, 99)] == [pytest.approx(1e-3)] * 3
