import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from jaxgpt.chat import DEFAULT_TEMPLATE, add_template
from jaxgpt.cli import convert, train
from jaxgpt.cli.evaluate import main
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.weights import save_params
from jaxgpt.stages import Pretrain
from jaxgpt.tokenizers.tokenizer import BPETokenizer

TEXT = "the quick brown fox jumps over the lazy dog; " * 40
FLAGS = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "max_iters": 4, "eval_interval": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    flags = {**FLAGS, "save_interval": 2, "eval_iters": 3, "sample_tokens": 0, "tensorboard": False}
    Pretrain(dataset=str(folder / "text.txt"), cache_dir=str(folder / "cache"), **flags).run(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory, draw) -> Path:
    """A model of another tokenizer and context, with a chat template."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = add_template(BPETokenizer.train([TEXT], 270), DEFAULT_TEMPLATE)
    config = GPTConfig(tokenizer.vocab_size, 32, 16, 1, 2)
    save_params(folder, config, draw(config))
    tokenizer.save(folder)
    return folder


def call(capsys, *argv: object) -> SimpleNamespace:
    """Return what a command line prints, and its exit code."""
    code = 0
    try:
        main([str(word) for word in argv])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return SimpleNamespace(code=code, out=captured.out, err=captured.err)


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {name: values for name, *values in rows}


def test_without_a_dataset_a_run_gets_the_loss_of_its_metrics(run, capsys, tmp_path):
    result = call(capsys, run, "--json", tmp_path / "out.json")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(row["loss"] for row in rows if row["split"] == "val")
    found = json.loads((tmp_path / "out.json").read_text())["results"][str(run)]
    assert result.code == 0 and found["loss"] == pytest.approx(best, abs=2e-6)
    assert found["tokens"] == 3 * 4 * 16 and cells(result.out)["loss"] == [f"{best:.4f}"]
    train.main(["--out_dir", str(run), "--init_from", "resume", "--eval_only"])
    line = capsys.readouterr().out.splitlines()[-1]
    numbers = dict(re.findall(r"val (\w+) ([\d.]+)", line))
    assert numbers == {name: f"{found[name]:.4f}" for name in ("loss", "perplexity", "bits_per_byte")}


def test_models_stand_side_by_side_and_what_cannot_be_compared_is_said(run, bpe, capsys):
    text = run.parent / "text.txt"
    result = call(capsys, run, bpe, "--dataset", text)
    table = cells(result.out)
    assert table[""] == [str(run), str(bpe)] and len(table["bits_per_byte"]) == 2
    assert "different tokenizers" in result.err and "contexts of 16, 32 tokens" in result.err
    alone = [cells(call(capsys, model, "--dataset", text).out)["loss"][0] for model in (run, bpe)]
    assert table["loss"] == alone
    assert "contexts" not in call(capsys, run, bpe, "--dataset", text, "--block_size", 16).err


def test_an_exported_model_gets_the_same_figures(run, capsys, tmp_path):
    convert.main([str(run), str(tmp_path / "hf")])
    convert.main([str(tmp_path / "hf"), str(tmp_path / "back")])
    capsys.readouterr()
    models = (run, tmp_path / "hf", tmp_path / "back")
    result = call(capsys, *models, "--dataset", run.parent / "text.txt", "--json", tmp_path / "out.json")
    assert result.code == 0 and result.err == ""
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len({json.dumps(found[str(model)]) for model in models}) == 1


def test_conversations_are_known_by_their_records(bpe, capsys, tmp_path):
    turns = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    table = cells(call(capsys, bpe, "--dataset", tmp_path / "chat.jsonl").out)
    assert table["bytes"] == [str(len("jumps"))] and table["texts"] == ["1"]
    turns[0]["content"] = "x" * 100  # so that nothing of the answer is left
    (tmp_path / "chat.jsonl").write_text(2 * (json.dumps({"messages": turns}) + "\n"))
    result = call(capsys, bpe, "--dataset", tmp_path / "chat.jsonl")
    assert result.code == 2 and "none of the 2 conversations fits into" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "no/such"], "dataset 'no/such': no such file or folder, nor one of plays"),
        (["--stride", "4"], "--stride 4: only with --dataset"),
        (["--dataset", "TEXT", "--stride", "400"], "stride 400: it must be from 1 to 16"),
        (["--dataset", "TEXT", "--block_size", "17"], "block_size 17: the model's context is 16"),
        (["--dataset", "TEXT", "--kind", "labels"], "has the labels none"),
        (["--dataset", "TEXT", "--kind", "chat"], "has no chat template"),
        (["--dataset", "TEXT", "--quantize", "int8", "--fsdp", "2"], "not with --fsdp or --tensor"),
        (["--dataset", "TEXT", "--json", "no/such/file.json"], "there is no folder no/such"),
        (["RUN"], "is given twice"),
        (["--datset", "x"], "did you mean '--dataset'?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(run, capsys, flags, message):
    places = {"TEXT": str(run.parent / "text.txt"), "RUN": str(run)}
    result = call(capsys, run, *(places.get(word, word) for word in flags))
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1, result.err


def test_data_are_looked_for_before_models_are_opened(capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    result = call(capsys, "no/model", "--dataset", "wikitext2", "--cache_dir", tmp_path)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "'wikitext2': wikitext-2-raw-v1/test-*.parquet of the hub's" in result.err and "no network" in result.err
    assert "dataset 'no/such'" in call(capsys, "no/model", "--dataset", "no/such").err
    result = call(capsys, "no/model", "nowhere", "--dataset", "plays")  # each model before the first is opened
    assert result.code == 2 and result.err.startswith("error: nowhere: no such folder")


def test_a_model_that_is_no_run_needs_a_dataset(bpe, capsys):
    assert "--dataset is missing" in call(capsys, bpe).err
    result = call(capsys)
    assert result.code == 2 and "MODELS is missing" in result.err


def test_a_folder_without_a_tokenizer_is_refused(capsys, tmp_path, draw):
    config = GPTConfig(19, 16, 16, 1, 2)
    save_params(tmp_path / "bare", config, draw(config))
    result = call(capsys, tmp_path / "bare", "--dataset", "plays")
    assert result.code == 2 and "tokenizer" in result.err or "chars.json" in result.err


def test_a_task_is_measured_from_a_file(run, bpe, capsys, tmp_path):
    lines = [{"context": "the quick", "choices": ["brown fox", "lazy dog"], "answer": n % 2} for n in range(4)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ("--task", "multiple_choice", "--dataset", tmp_path / "task.jsonl")
    table = cells(call(capsys, run, bpe, *flags).out)
    assert table["acc"] == ["0.5000"] * 2 and table["examples"] == ["4"] * 2
    assert cells(call(capsys, bpe, *flags, "--limit", 1).out)["examples"] == ["1"]
    result = call(capsys, bpe, *flags, "--stride", 4)
    assert result.code == 2 and "--stride 4: not with --task multiple_choice" in result.err
    result = call(capsys, bpe, *flags[:2])
    assert result.code == 2 and "--dataset is missing" in result.err
    result = call(capsys, bpe, "--task", "hellaswig")
    assert result.code == 2 and "did you mean 'hellaswag'" in result.err


def test_classifiers_and_reward_models_are_measured_by_what_they_are_made_for(capsys, tmp_path, draw):
    tokenizer = BPETokenizer.train([TEXT], 270)
    for name, labels in (("classifier", ("ham", "spam")), ("reward", ("reward",))):
        config = GPTConfig(tokenizer.vocab_size, 32, 16, 1, 2, labels=labels)
        save_params(tmp_path / name, config, draw(config))
        tokenizer.save(tmp_path / name)
    texts = [{"text": f"the fox {n}", "label": ("ham", "spam")[n % 2]} for n in range(5)]
    pairs = [{"prompt": "the quick", "chosen": f" fox {n}", "rejected": " dog"} for n in range(5)]
    for name, lines in (("texts", texts), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = call(capsys, tmp_path / "classifier", "--dataset", tmp_path / "texts.jsonl")
    assert "accuracy" in cells(result.out) and cells(result.out)["texts"] == ["5"]
    assert "as spam" in result.out and "recall of ham" in result.out
    table = cells(call(capsys, tmp_path / "reward", "--dataset", tmp_path / "pairs.jsonl").out)
    assert table["pairs"] == ["5"] and 0 <= float(table["accuracy"][0]) <= 1
    texts[1]["label"] = "spma"
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    result = call(capsys, tmp_path / "classifier", "--dataset", tmp_path / "texts.jsonl")
    assert result.code == 2 and "texts.jsonl:2: label 'spma' is none of 'ham', 'spam'" in result.err
    result = call(capsys, tmp_path / "reward", "--dataset", tmp_path / "texts.jsonl", "--kind", "labels")
    assert result.code == 2 and "has the labels reward; it is made for others" in result.err
