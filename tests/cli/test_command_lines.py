"""Command lines of nanoGPT's, transformers' and TRL's users, each as its author types it, on tiny data."""

import json
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest

from jaxgpt import notes
from jaxgpt.cli import convert, generate, train
from jaxgpt.train.metrics import read_rows

pytestmark = pytest.mark.slow
NANOGPT = """
out_dir = 'out-shakespeare-char'
eval_interval = 2 # keep frequent because we'll overfit
eval_iters = 2
log_interval = 1
always_save_checkpoint = False
wandb_log = False # override via command line if you like
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 4
block_size = 16
n_layer = 1
n_head = 2
n_embd = 16
dropout = 0.2
learning_rate = 1e-3
max_iters = 4
lr_decay_iters = 4
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 1
"""
MAINS = {"train.py": train.main, "generate.py": generate.main, "sample.py": generate.main}
MAINS["convert_weights.py"] = convert.main


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """What nanoGPT's `prepare.py` leaves, a tiny model for transformers, and files of examples."""
    path = tmp_path_factory.mktemp("home")
    data, chars = path / "data" / "shakespeare_char", "\nabcdefgh"
    data.mkdir(parents=True)
    for name in ("train", "val"):
        (np.arange(2000, dtype=np.uint16) % len(chars)).tofile(data / f"{name}.bin")
    stoi = {char: index for index, char in enumerate(chars)}
    meta = {"vocab_size": len(chars), "stoi": stoi, "itos": dict(enumerate(chars))}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    (path / "config").mkdir()
    (path / "config" / "train_shakespeare_char.py").write_text(NANOGPT)
    (path / "question.txt").write_text("ab")
    (path / "text.txt").write_text("to be, or not to be, that is the question\n" * 200)
    chats = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "to be" * (i % 3 + 1)}]
        for i in range(24)
    ]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (path / "chat.jsonl").write_text("\n".join(lines))
    pairs = [{"prompt": f"say {i}", "chosen": "to be", "rejected": "not"} for i in range(24)]
    (path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    labelled = [{"text": "to be" if i % 2 else "or not", "label": str(i % 2)} for i in range(24)]
    (path / "texts.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    sizes = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=64 --batch_size=2 --eval_iters=1 --max_iters=1"
    words = f"--dataset={path}/text.txt --out_dir={path}/run --cache_dir={path}/cache --sample_tokens=1 --bias=True"
    train.main([*shlex.split(f"{words} {sizes}"), "--tokenizer=bpe", "--bpe_vocab_size=260", "--tensorboard=false"])
    convert.main([str(path / "run"), str(path / "tiny-gpt2")])
    return path


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    notes.note.cache_clear()


def run(line: str) -> None:
    name, *words = shlex.split(line)
    MAINS[name](words)


def last_step(folder: str) -> int:
    return read_rows(Path(folder) / "metrics.jsonl")[-1]["step"]


TRAINED = [
    # nanoGPT's README, and its users' habits
    ("train.py config/train_shakespeare_char.py", "out-shakespeare-char", 4),
    ("train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=1 --max_iters=2"
     " --dropout=0.0 --out_dir=a", "a", 2),
    ("train.py config/train_shakespeare_char.py --out_dir b --grad_clip 0.0 --max_iters 1 --compile False", "b", 1),
    ("train.py config/train_shakespeare_char.py --out_dir=c --wandb_log=False --wandb_run_name=x --max_iters=1"
     " --decay_lr=False --backend=gloo", "c", 1),
    ("train.py config/train_shakespeare_char.py --init_from=resume --max_iters=5", "out-shakespeare-char", 5),
    ("train.py --init_from=tiny-gpt2 --dataset=text.txt --block_size=16 --batch_size=1 --max_iters=2 --eval_iters=1"
     " --eval_interval=5 --gradient_accumulation_steps=2 --learning_rate=3e-5 --decay_lr=False --out_dir=d", "d", 2),
    # transformers' run_clm.py
    ("train.py --model_name_or_path tiny-gpt2 --train_file text.txt --do_train --do_eval --output_dir e --eval_iters 1"
     " --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --max_steps 1 --overwrite_output_dir", "e", 1),
    # TRL
    ("train.py sft --model_name_or_path tiny-gpt2 --dataset_name chat.jsonl --learning_rate 2.0e-5 --max_steps 2"
     " --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --gradient_checkpointing --eval_strategy steps"
     " --eval_steps 1 --logging_steps 1 --output_dir f --report_to none", "f", 2),
    ("train.py sft --model_name_or_path tiny-gpt2 --dataset_name chat.jsonl --lr 2.0e-4 --max_length 32 --max_steps 1"
     " --per_device_train_batch_size 2 --use_peft --lora_r 4 --lora_alpha 16 --output_dir g --warmup_steps 1", "g", 1),
    ("train.py dpo --model_name_or_path f --dataset_name pairs.jsonl --beta 0.1 --loss_type ipo --max_steps 1"
     " --per_device_train_batch_size 2 --lr_scheduler_type cosine --optim adamw_torch --output_dir h", "h", 1),
    ("train.py reward --model_name_or_path f --dataset_name pairs.jsonl --output_dir i --max_steps 1"
     " --per_device_train_batch_size 2 --learning_rate 1.0e-5 --save_steps 1 --save_total_limit 1", "i", 1),
    ("train.py classify --model_name_or_path tiny-gpt2 --train_file texts.jsonl --output_dir j --max_steps 1"
     " --per-device-train-batch-size 2 --seed 42", "j", 1),
]  # fmt: skip


@pytest.mark.parametrize(("line", "folder", "steps"), TRAINED, ids=[f"{i}-{row[1]}" for i, row in enumerate(TRAINED)])
def test_a_run_is_what_its_author_expects(line, folder, steps, capsys):
    run(line)
    out = capsys.readouterr().out
    assert last_step(folder) == steps and f"step {steps}: " in out and "val loss" in out
    assert json.loads((Path(folder) / "config.json").read_text())["flags"]["max_iters"] == steps


def test_values_mean_what_they_meant(home):
    """Of the runs above."""
    flags = {name: json.loads((home / name / "config.json").read_text())["flags"] for name in "bcfgh"}
    assert flags["b"]["grad_clip"] is None and flags["c"]["wandb"] is None and flags["c"]["decay_lr"] is False
    assert flags["f"]["remat"] and not flags["f"]["tensorboard"] and flags["f"]["eval_interval"] == 1
    assert (flags["g"]["lora_rank"], flags["g"]["lora_alpha"], flags["g"]["block_size"]) == (4, 16, 32)
    assert (flags["h"]["loss"], flags["h"]["beta"], flags["h"]["base"]) == ("ipo", 0.1, "f")


@pytest.mark.parametrize("form", ["--eval_only=True", "--eval_only True", "--eval-only"])
def test_an_evaluation_alone(form, capsys):
    run(f"train.py config/train_shakespeare_char.py {form} --init_from=resume --max_iters=5")
    assert capsys.readouterr().out.count("step 5: ") == 1


SAMPLED = [
    ("sample.py --out_dir=out-shakespeare-char --device=cpu", "\n", 1),
    ("sample.py --init_from=resume --out_dir=a --start=ab --max_new_tokens=3 --dtype=float32", "ab", 1),
    ('sample.py --out_dir=a --start="FILE:question.txt" --num_samples=2 --max_new_tokens=3', "ab", 2),
    ("sample.py --init_from=tiny-gpt2 --start 'to be' --num_samples=5 --max_new_tokens=4 --compile=False", "to be", 5),
    ("generate.py --model_name_or_path tiny-gpt2 --prompt 'to be' --length 4 --num_return_sequences 2", "to be", 2),
]


@pytest.mark.parametrize(("line", "start", "samples"), SAMPLED, ids=["plain", "resume", "file", "five", "transformers"])
def test_samples_are_as_many_and_begin_as_asked(line, start, samples, capsys):
    run(line)
    out = capsys.readouterr().out
    texts = out.split(f"{generate.SEPARATOR}\n")
    assert len(texts) == samples and all(text.startswith(start) for text in texts)
