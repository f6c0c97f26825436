"""The flow of `train.py` in one process; stops, crashes and bad surroundings are tests/faults'."""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.cli import convert, generate, train
from jaxgpt.files import digest
from jaxgpt.mesh import make_mesh
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.folder import read_record, write_record
from jaxgpt.runs.manifest import read_manifest
from jaxgpt.runs.weights import load_params
from jaxgpt.signals import Stop
from jaxgpt.stages import SFT, STAGES, Pretrain, load_stage
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.stages.sft import SFTConfig
from jaxgpt.train.metrics import read_rows
from jaxgpt.train.optimizer import schedule
from tests.train.test_metrics import shown

TEXT = "To be, or not to be, that is the question.\n" * 200
SMALL = "--n_layer 2 --n_head 2 --n_embd 16 --block_size 16 --batch_size 4 --eval_iters 2 --log_interval 5".split()
SHORT = "--max_iters 20 --warmup_iters 2 --eval_interval 10 --save_interval 10 --sample_tokens 20".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a text, and in `run` a model trained on it."""
    path = tmp_path_factory.mktemp("train")
    (path / "text.txt").write_text(TEXT)
    run_train(path, "--tokenizer", "bpe", "--bpe_vocab_size", "300", "--bias", *SMALL, *SHORT)
    return path


def run_train(path: Path, *argv: str, out: str = "run", dataset: str = "text.txt") -> None:
    places = ["--out_dir", str(path / out), "--dataset", str(path / dataset), "--cache_dir", str(path / "cache")]
    train.main([*places, "--tensorboard=false", *argv])


def fails(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        train.main(list(argv))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_run_leaves_what_its_folder_promises(folder):
    run = folder / "run"
    rows = read_rows(run / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [
        (0, "val"), (5, "train"), (10, "train"), (10, "val"), (15, "train"), (20, "train"), (20, "val"),
    ]  # fmt: skip
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"loss", "lr", "grad_norm", "tokens_per_s", "mfu"} <= rows[1].keys()
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "samples" / "20.txt").read_text()
    assert json.loads((run / "config.json").read_text())["flags"]["bpe_vocab_size"] == 300


def test_a_run_that_ended_before_it_was_shown_is_shown_by_the_next_call(folder, capsys):
    run, words = shutil.copytree(folder / "run", folder / "unseen"), ["--init_from", "auto", *SHORT]
    sample, checkpoint = (run / "samples" / "20.txt").read_text(), run / "checkpoints" / "20"
    shutil.rmtree(run / "samples")
    os.utime(run / "curve.png", (0, 0))  # left by an earlier stop
    run_train(folder, *words, out="unseen")
    out = capsys.readouterr().out
    assert f"curve: {run / 'curve.png'}" in out and out.count("\nattention: ") == 1
    assert (run / "samples" / "20.txt").read_text() == sample
    run_train(folder, *words, out="unseen")
    assert capsys.readouterr().out == f"{run} is already done: step 20 of 20\n"
    assert read_rows(run / "metrics.jsonl") == read_rows(folder / "run" / "metrics.jsonl")
    assert read_manifest(checkpoint) == read_manifest(folder / "run" / "checkpoints" / "20")


def test_samples_and_a_profile_leave_a_run_as_it_is_and_a_resumed_one_shows_each_once(folder, capsys, monkeypatch):
    """Here it stops after 7 updates, and the checkpoint of those is lost, so that updates from 4 on are made again."""
    run, requested = folder / "sampled", Stop.requested
    words = ["--tokenizer", "bpe", "--bpe_vocab_size", "300", "--bias", *SMALL, *SHORT[:4], "--sample_tokens", "20"]
    words += ["--eval_interval", "10", "--sample_interval", "5", "--save_interval", "4", "--dataset"]
    words += [str(folder / "text.txt"), "--out_dir", str(run), "--cache_dir", str(folder / "cache")]
    monkeypatch.setattr(Stop, "requested", lambda stop, done: done == 7 or requested(stop, done))
    train.main([*words, "--profile", str(folder / "trace")])
    out = capsys.readouterr().out
    [trace] = (folder / "trace").rglob("perfetto_trace.json.gz")
    assert f"profile: updates 3 to 5, in {trace};" in out and "sample of step 5:\n" in out
    monkeypatch.setattr(Stop, "requested", requested)
    shutil.rmtree(run / "checkpoints" / "7")
    train.main(["--init_from", "resume", "--out_dir", str(run)])
    assert "profile: " not in capsys.readouterr().out
    for name in ("loss", "grad_norm", "lr"):
        rows, others = (read_rows(one / "metrics.jsonl") for one in (run, folder / "run"))
        assert [row.get(name) for row in rows] == [row.get(name) for row in others]
    assert sorted(file.name for file in (run / "samples").iterdir()) == ["10.txt", "15.txt", "20.txt", "5.txt"]
    assert (run / "samples" / "20.txt").read_text() == (folder / "run" / "samples" / "20.txt").read_text()
    texts = [(step, tag) for step, tag, _ in shown(run) if "/text" in tag]
    assert texts == [(0, "flags/text_summary"), *((step, "sample/text_summary") for step in (5, 10, 15))]


def test_a_config_that_was_changed_is_refused_unless_that_was_on_purpose(folder, capsys):
    """By whoever opens the run; a run that goes on with it makes it its own."""
    run = shutil.copytree(folder / "run", folder / "edited")
    record = json.loads((run / "config.json").read_text())
    record["model"]["n_head"] = 4  # of which the weights know nothing
    (run / "config.json").write_text(json.dumps(record))
    places = ["--out_dir", str(run), "--cache_dir", str(folder / "cache"), "--tensorboard=false"]
    resume = ["--init_from", "resume", "--n_head", "4", *SHORT[2:], *places]
    for main, words in (
        (train.main, [*resume, "--max_iters", "21"]),
        (generate.main, ["--init_from", str(run), "--start", "To be"]),
        (convert.main, [str(run), str(folder / "never")]),
        (
            train.main,
            ["--init_from", str(run), "--out_dir", str(folder / "never"), "--dataset", str(folder / "text.txt")],
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        error = capsys.readouterr().err
        assert (
            error.startswith(f"error: {run / 'config.json'} has changed since it was written")
            and error.count("\n") == 1
        )
    generate.main(["--init_from", str(run), "--start", "To be", "--max_new_tokens", "3", "--ignore_config_change"])
    (run / "config.json").write_text(json.dumps({name: entry for name, entry in record.items() if name != "new"}))
    assert "config.json: new is missing" in fails(capsys, *resume, "--max_iters", "21", "--ignore_config_change")
    (run / "config.json").write_text(json.dumps(record))
    train.main([*resume, "--max_iters", "21", "--ignore_config_change"])
    capsys.readouterr()
    generate.main(["--init_from", str(run), "--start", "To be", "--max_new_tokens", "3"])
    assert json.loads((run / "config.json").read_text())["flags"]["ignore_config_change"] is True
    train.main([*resume, "--max_iters", "22"])


def test_a_run_that_was_begun_before_records_had_hashes_goes_on(folder, capsys):
    run = shutil.copytree(folder / "run", folder / "earlier")
    record = json.loads((run / "config.json").read_text())
    del record["run"], record["sha256"], record["flags"]["ignore_config_change"]
    (run / "config.json").write_text(json.dumps(record))
    for file in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["run"], manifest["sha256"]
        file.write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    run_train(folder, "--init_from", "resume", *SHORT[2:], "--max_iters", "21", out="earlier")
    config, _ = load_params(run, 21)
    assert config == load_params(folder / "run", 20)[0]
    assert json.loads((run / "checkpoints" / "21" / "manifest.json").read_text())["run"] == read_record(run)["run"]


def test_a_trained_model_speaks_alike_here_and_in_transformers(folder, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert.main([str(folder / "run"), str(folder / "hf"), "--check"])
    capsys.readouterr()
    generate.main(["--init_from", str(folder / "run"), "--start", "To be", "--temperature", "0"])
    ours = capsys.readouterr().out
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    ids = tokenizer("To be", return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(**ids, do_sample=False, max_length=16, pad_token_id=0)[0]
    assert ours.rstrip("\n") == tokenizer.decode(theirs).rstrip("\n")


def test_a_converted_model_is_trained_further_from_its_own_weights(folder):
    convert.main([str(folder / "run"), str(folder / "export")])
    run_train(
        folder, "--init_from", str(folder / "export"), "--learning_rate", "1e-9", "--min_lr", "0", *SHORT, out="tuned",
        dataset="text.txt",
    )  # fmt: skip
    (_, before), (_, after) = load_params(folder / "run", "best"), load_params(folder / "tuned", "last")
    np.testing.assert_allclose(after["wte"]["embedding"], before["wte"]["embedding"], atol=1e-6)


def test_a_pickle_is_trained_further_where_that_is_allowed(capsys, folder, tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    convert.main([str(folder / "run"), str(tmp_path / "hf")])
    torch.save(safetensors.load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "model.safetensors").unlink()
    given = {"init_from": str(tmp_path / "hf"), "dataset": str(folder / "text.txt")}
    error = fails(capsys, "--out_dir", str(tmp_path / "x"), *(f"--{name}={value}" for name, value in given.items()))
    assert "pytorch_model.bin is a pickle, not safetensors; allow_pickle (--allow_pickle) reads" in error
    pretrain, sft = (Pretrain(**given, cache_dir=str(tmp_path), allow_pickle=True), SFT(**given, allow_pickle=True))
    pretrain.open(tmp_path, None)
    sft.open_base(tmp_path, None)
    assert pretrain.config == sft.config
    np.testing.assert_array_equal(pretrain.params["wte"]["embedding"], sft.params["wte"]["embedding"])


def test_attention_of_a_pretrained_model_drops_nothing_unless_it_is_asked_to(folder, tmp_path):
    model, rates = tmp_path / "hf", ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    convert.main([str(folder / "run"), str(model)])
    written = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**written, **dict.fromkeys(rates, 0.1)}))
    given = {"init_from": str(model), "dataset": str(folder / "text.txt")}
    off, mesh = "; attn_pdrop is 0, as of every pretrained model unless --dropout is given", make_mesh()
    for dropout, expected, said in (
        (None, (0.1, 0.1, 0.0), off),
        (0.2, (0.2, 0.2, 0.2), "XLA's, because attn_pdrop is 0.2"),
    ):
        flags = PretrainConfig(**given, cache_dir=str(tmp_path), dropout=dropout)
        pretrain, sft = Pretrain(flags), SFT(**given, dropout=dropout)
        pretrain.open(tmp_path, None)
        assert said in pretrain.trainer(mesh).attention(pretrain.batch(0))
        sft.open_base(tmp_path, None)
        for config in (pretrain.config, sft.config):
            assert tuple(getattr(config, rate) for rate in rates) == expected
    # A run that goes on has what it began with.
    flags, begun = SFTConfig(**given), GPTConfig.from_hf(json.loads((model / "config.json").read_text()))
    assert begun.attn_pdrop == 0.1
    record = {"flags": asdict(flags), "model": begun, "begun_from": str(model), "base": False}
    sft = SFT(flags)
    sft.open_base(model, record)
    assert sft.config == begun


# Lowering a program puts other things than arrays into a Batch.
def test_a_dry_run_prints_the_budget_and_writes_nothing(folder, capsys, unchecked_types):
    run_train(folder, "--dry_run", *SMALL, *SHORT, out="dry")
    out = capsys.readouterr().out
    assert "embeddings" in out and "GFLOP a step" in out and "tokens per step" in out
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n_embd", "30", "--n_head", "4"], "n_embd 30 is not a multiple of n_head 4"),
        (["--n_layer", "0"], "n_layer is 0"),
        (["--dropout", "1"], "dropout is 1.0; it must be in [0, 1)"),
        (["--learning_rate", "nan"], "learning_rate is nan"),
        (["--min_lr", "1"], "min_lr is 1.0; it must be from 0 to learning_rate 0.001"),
        (["--max_iters", "10", "--warmup_iters", "11"], "warmup_iters is 11; it must be from 0 to 10"),
        (["--preset", "gpt3"], "no preset 'gpt3'"),
        (["--dataset", "no/such"], "dataset 'no/such'"),
        (["--init_from", "no-such-model"], "no-such-model: no such folder"),
        (["--block_size", "200000"], "block_size 200000 needs at least 200001"),
        (
            ["--n_layer", "4096", "--n_embd", "8192"],
            "the model's 3,298,603,155,456 parameters take 12,288 GiB; the devices have",
        ),
        (["--profile", "train.py/x"], "--profile train.py/x: "),
        (
            ["--profile", "x", "--max_iters", "4", "--warmup_iters", "1"],
            "--profile x: needs 5 updates, and there are 4",
        ),
        (["--profile", "x", "--dry_run"], "--profile x: not with --dry_run or --eval_only, which make no updates"),
        (["--sample_interval", "0"], "sample_interval is 0"),
        (["--learnig_rate", "1"], "did you mean '--learning_rate'?"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(capsys, tmp_path, argv, message):
    assert message in fails(capsys, "--out_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path), *argv)


def test_a_preset_is_only_for_models_from_scratch(capsys, folder):
    error = fails(capsys, "--out_dir", str(folder / "x"), "--init_from", str(folder / "run"), "--preset", "gpt2")
    assert "--preset gpt2: only with --init_from scratch" in error


def test_a_pretrained_models_shape_is_not_changed_by_flags(capsys, folder):
    error = fails(capsys, "--out_dir", str(folder / "x"), "--init_from", str(folder / "run"), "--n_layer", "3")
    assert "n_layer is 3, was 2" in error


def test_overwrite_leaves_the_other_run_where_it_is_until_nothing_is_wrong(capsys, folder):
    run, before = folder / "run", sorted((folder / "run").iterdir())
    assert "dataset 'no/such'" in fails(capsys, "--out_dir", str(run), "--overwrite", "--dataset", "no/such")
    assert sorted(run.iterdir()) == before and not (folder / "run.old-1").exists()


def test_a_resumed_run_finds_its_token_files_again_and_keeps_its_tokenizer(capsys, folder):
    run_train(folder, *SMALL, *SHORT, out="more")
    cached = sorted((folder / "cache").rglob("*"))
    places = ["--out_dir", str(folder / "more"), "--init_from", "resume", "--max_iters", "25"]
    assert "tokenizer is gpt2, was None" in fails(capsys, *places, "--tokenizer", "gpt2")
    train.main(places)
    assert sorted((folder / "cache").rglob("*")) == cached
    assert read_rows(folder / "more" / "metrics.jsonl")[-1]["step"] == 25


def test_a_run_that_goes_on_keeps_the_schedule_in_its_record(tmp_path):
    for begun in ({"max_iters": 2000, "warmup_iters": 7}, {"max_iters": 40, "warmup_iters": None}):
        record = dataclasses.asdict(PretrainConfig(**begun))
        write_record(tmp_path, GPTConfig(), stage="pretrain", flags=record)
        flags = train.read_stage(["--init_from", "resume", "--out_dir", str(tmp_path)]).flags
        assert isinstance(flags, PretrainConfig) and schedule(flags)(5) == schedule(PretrainConfig(**begun))(5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tokenizer", "char"], "--tokenizer char: its ids mean other texts"),
        (["--tokenizer", "gpt2"], "--tokenizer gpt2: its ids mean other texts"),
        (["--bpe_vocab_size", "400"], "--bpe_vocab_size 400: only with --tokenizer bpe"),
    ],
)
def test_a_model_is_not_trained_on_another_tokenizers_ids(capsys, folder, argv, message):
    places = [
        "--out_dir",
        str(folder / "x"),
        "--dataset",
        str(folder / "text.txt"),
        "--cache_dir",
        str(folder / "cache"),
    ]
    assert message in fails(capsys, *places, "--init_from", str(folder / "run"), *argv)


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_every_flag_once_in_its_group_and_examples_that_parse(stage, capsys):
    """Each stage's own data and, where it has some, its objective's numbers stand together."""
    with pytest.raises(SystemExit) as caught:
        train.main([*([] if stage == "pretrain" else [stage]), "--help"])
    flags, text = load_stage(stage).Flags, capsys.readouterr().out
    assert caught.value.code == 0
    for field in dataclasses.fields(flags):
        assert len(re.findall(rf"^  --{field.name} ", text, re.MULTILINE)) == 1, field.name
    parts = re.split(r"^(\w[\w ]*):\n", text, flags=re.MULTILINE)
    groups = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(groups)[-1] == "examples" and {"run", "data", "model", "optimizer", "logging"} <= groups.keys()
    for name, group in {"dataset": "data", "max_iters": "optimizer", "batch_size": "data", "wandb": "logging"}.items():
        assert f"\n  --{name} " in f"\n{groups[group]}"
    assert ("objective" in groups) == (stage in ("reward", "dpo", "ppo"))
    assert ("--sample_interval" in text) == (stage not in ("classify", "reward"))  # which say nothing
    if stage == "pretrain":
        assert all(f"\n  {other} " in text for other in STAGES if other != "pretrain")
    for line in train.EXAMPLES[stage]:
        words = line.replace("resume", "auto").split()[1:]
        assert train.read_stage(words).name == stage
