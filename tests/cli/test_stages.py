"""Every stage from its command line: a stopped and resumed run is an uninterrupted one, and bad input is one line."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxgpt
from benchmarks.soak import ENVIRONMENT, ROOT, differences
from jaxgpt import load_pretrained, save_pretrained
from jaxgpt.chat.template import DEFAULT_TEMPLATE, add_special_tokens
from jaxgpt.cli import convert, evaluate, generate, train
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective, Sums
from jaxgpt.runs.folder import read_record
from jaxgpt.runs.weights import BASE, load_params
from jaxgpt.signals import Stop
from jaxgpt.stages.classify import Classify
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.train.metrics import read_rows
from tests import processes

TEXT = "Who is there? It is the king. What does he want? He wants bread and wine.\n" * 200
SMALL = "--n_layer 1 --n_head 2 --n_embd 16 --block_size 48 --batch_size 4 --eval_iters 2".split()
SHORT = "--max_iters 4 --warmup_iters 1 --log_interval 1 --tensorboard=false --learning_rate 1e-3".split()
ASKED = [("Who is there?", "It is the king."), ("What does he want?", "He wants bread."), ("Who wants?", "The king.")]
GRPO = ["--algorithm", "grpo", "--group_size", "4"]
FUNCTION = ["--reward_function", "rewards.py:length"]
PPO = "--rollout_size 8 --batch_size 4 --epochs 2 --max_new_tokens 6 --eval_iters 1".split()
LORA = ["--lora_rank", "2", "--lora_dropout", "0.1"]
# Name of a case → stage, the model that it begins with, flags.
CASES: dict[str, tuple[str, str, list[str]]] = {
    "classify": ("classify", "pretrained", ["--dropout", "0.1", "--gradient_accumulation_steps", "2"]),
    "classify the last layer": ("classify", "deep", ["--train_layers", "last_1"]),
    "sft": ("sft", "pretrained", []),
    "sft with adapters": ("sft", "pretrained", [*LORA, "--packing=false", "--sample_interval", "1"]),
    "reward": ("reward", "sft", ["--centring", "0.01"]),
    "dpo": ("dpo", "sft", ["--sample_interval", "2"]),
    "dpo with adapters": ("dpo", "sft", [*LORA, "--reference", "live"]),
    "dpo of the last layer": ("dpo", "deep", ["--train_layers", "last_1", "--loss", "ipo"]),
    "ppo": ("ppo", "sft", [*PPO, "--kl_target", "0.1", "--reward_model", "reward"]),
    "ppo with adapters": ("ppo", "sft", [*PPO, *LORA[:2], *FUNCTION, "--kl_target", "0.1", "--sample_interval", "2"]),
    "grpo": (
        "ppo",
        "sft",
        [*PPO, *GRPO, *FUNCTION],
    ),
}


def last_of_equal(words: list[str]) -> list[str]:
    """Leave out a flag, with its value, that is given again behind it."""
    flags, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            flags[name] = []
        flags[name].append(word)
    return [word for found in flags.values() for word in found]


class Workshop:
    """A folder with examples, and the runs that were made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "text.txt").write_text(TEXT)
        asked = ASKED * 4
        records = {
            "classify": [{"text": q, "label": "who" if q.startswith("Who") else "what"} for q, _ in asked],
            "sft": [{"instruction": q, "output": a} for q, a in asked],
            "reward": [
                {"prompt": [{"role": "user", "content": q}], "chosen": a, "rejected": f"{a} {a}"} for q, a in asked
            ],
            "ppo": [{"messages": [{"role": "user", "content": q}]} for q, _ in asked],
        }
        records["dpo"] = records["reward"]
        for name, rows in records.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "rewards.py").write_text("def length(prompts, responses):\n    return [len(r) for r in responses]\n")

    def pretrain(self) -> None:
        places = ["--dataset", "text.txt", "--out_dir", "pretrained", "--cache_dir", "cache"]
        train.main([*places, "--tokenizer", "bpe", "--bpe_vocab_size", "280", *SMALL, *SHORT, "--sample_tokens", "0"])

    @staticmethod
    def argv(name: str, out: str, *more: str) -> list[str]:
        stage, begin, flags = CASES[name]
        begin_with = [] if "--init_from" in more else ["--init_from", begin]
        words = [*begin_with, "--dataset", f"{stage}.jsonl", "--val_fraction", "0.25", "--out_dir", out]
        return [stage, *last_of_equal([*words, *SHORT, "--save_interval", "2", *flags, *more])]

    def run(self, name: str, out: str, *more: str, drawn: bool = False) -> None:
        """Run a case in the folder `out`; its curve, which takes long to draw, is drawn by two of `whole`'s."""
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                patch.setattr(jaxgpt.train, "plot", lambda folder: folder / "curve.png")
            train.main(Workshop.argv(name, out, *more))

    def whole(self, name: str) -> Path:
        """Return the folder of a case's run that nothing disturbed, which is made once for all tests."""
        out = Path(name.replace(" ", "-"))
        if not out.exists():
            self.run(name, str(out), drawn=name in ("classify", "ppo"))
        return out

    def deepen(self) -> None:
        """Write a model of two layers, those of the model in `sft`: most cases say as much with one, and sooner."""
        config, params = load_params("sft")
        save_pretrained("deep", replace(config, n_layer=2), {**params, "h_1": params["h_0"]})
        load_tokenizer("sft").save("deep")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def here(workshop, monkeypatch) -> Workshop:
    """The workshop as the working folder, with the runs that others begin with."""
    monkeypatch.chdir(workshop.folder)
    if not Path("pretrained").exists():
        workshop.pretrain()
        workshop.whole("sft")
        workshop.deepen()
        workshop.whole("reward")
        shutil.copytree("reward", "laid-out-otherwise")
        (Path("laid-out-otherwise") / "chat_template.jinja").write_text(
            DEFAULT_TEMPLATE.source.replace("<|user|>", "User: ")
        )
        shutil.copytree("pretrained", "more-ids")
        add_special_tokens(load_tokenizer("more-ids"), ["<|pad|>"]).save("more-ids")
    return workshop


def stop_at(monkeypatch, step: int) -> None:
    """Let runs stop at a step as if a signal had come."""

    def requested(self: Stop, done: int) -> bool:
        self.reason = "SIGTERM" if done == step else None
        return done == step

    monkeypatch.setattr(Stop, "requested", requested)


def errors_of(capsys, run: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as caught:
        run()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_resumed_is_uninterrupted_bit_for_bit(here, monkeypatch, name: str):
    whole = here.whole(name)
    parts = f"{whole}-parts"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        here.run(name, parts)
    assert max(row["step"] for row in read_rows(Path(parts, "metrics.jsonl"))) == 2
    here.run(name, parts, "--init_from", "resume")
    assert differences(whole, Path(parts), 4) == []


def test_what_is_frozen_stays_and_what_is_not_moves(here):
    whole = here.whole("classify the last layer")
    _, before = load_pretrained("deep")
    config, after = load_params(whole, "last")
    assert config.labels == ("what", "who")
    for part in ("wte", "wpe", "h_0"):
        for one, other in zip(jax.tree.leaves(before[part]), jax.tree.leaves(after[part]), strict=True):
            np.testing.assert_array_equal(one, other)
    for part in ("h_1", "ln_f"):
        assert all((one != other).any() for one, other in
                   zip(jax.tree.leaves(before[part]), jax.tree.leaves(after[part]), strict=True))  # fmt: skip
    stored = [str(path) for path in (whole / "checkpoints/4/params").rglob("*")]
    assert not any("wte" in path for path in stored), "a checkpoint holds what is trained alone"


def test_conversations_give_a_model_a_template_and_its_tokens_and_leave_other_rows_as_they_were(here, capsys):
    whole = here.whole("sft with adapters")
    _, before = load_params("pretrained")
    config, params = load_params(whole / BASE)
    tokenizer = load_tokenizer(whole)
    assert config.vocab_size == tokenizer.vocab_size == 284
    np.testing.assert_array_equal(params["wte"]["embedding"][:280], before["wte"]["embedding"])
    assert config.eos_token_ids[0] == tokenizer.encode("<|end|>", allow_special=True)[0]
    capsys.readouterr()
    generate.main(["--init_from", "sft", "--start", "Who is there?", "--max_new_tokens", "8"])
    assert "<|" not in capsys.readouterr().out, "an answer is printed without the template around it"


def test_adapters_are_merged_when_a_model_is_read_and_go_to_peft_alone(here, capsys):
    whole = here.whole("sft with adapters")
    assert read_record(whole)["lora"]["rank"] == 2
    config, params = load_params(whole, "last")
    base_config, base = load_params(whole / BASE)
    assert config == base_config
    moved = params["h_0"]["attn"]["c_attn"]["kernel"] - base["h_0"]["attn"]["c_attn"]["kernel"]
    assert np.linalg.matrix_rank(np.asarray(moved, np.float64), tol=1e-6) <= 2 and np.abs(moved).max() > 0
    convert.main([str(whole), "for-peft", "--adapters"])
    assert {file.name for file in Path("for-peft").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    convert.main(["for-peft", "merged", "--base", f"{whole}/{BASE}"])
    for one, other in zip(jax.tree.leaves(load_params("merged")[1]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_makes_a_run_may_not_change_when_it_goes_on(here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        here.run("ppo with adapters", "fixed")
        here.run("dpo", "fixed-dpo")
    capsys.readouterr()
    for flag, difference in (("--epochs=1", "epochs is 1, was 2"), ("--lora_rank=3", "lora_rank is 3, was 2")):
        error = errors_of(capsys, lambda flag=flag: here.run("ppo with adapters", "fixed", "--init_from=resume", flag))
        assert difference in error
    rewards = Path("rewards.py").read_text()
    try:
        Path("rewards.py").write_text(f"{rewards}# another one\n")
        error = errors_of(capsys, lambda: here.run("ppo with adapters", "fixed", "--init_from", "resume"))
    finally:
        Path("rewards.py").write_text(rewards)
    assert "reward is " in error
    shutil.rmtree(f"fixed/{BASE}")
    error = errors_of(capsys, lambda: here.run("ppo with adapters", "fixed", "--init_from", "resume"))
    assert f"fixed/{BASE} is missing" in error
    pairs = Path("dpo.jsonl").read_text()
    try:
        Path("dpo.jsonl").write_text(
            pairs.replace("chosen", "x").replace("rejected", "chosen").replace('"x"', '"rejected"')
        )
        more = ("--init_from", "resume", "--ignore_data_change")
        assert "is of other pairs" in errors_of(capsys, lambda: here.run("dpo", "fixed-dpo", *more))
    finally:
        Path("dpo.jsonl").write_text(pairs)


def test_a_policy_is_exported_as_the_language_model_that_it_is(here):
    transformers = pytest.importorskip("transformers")
    whole = here.whole("ppo")
    convert.main([str(whole), "policy-hf", "--check"])
    assert json.loads(Path("policy-hf/config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    model = transformers.GPT2LMHeadModel.from_pretrained("policy-hf")
    np.testing.assert_array_equal(
        model.transformer.wte.weight.detach().numpy(), load_params(whole)[1]["wte"]["embedding"]
    )


def assert_close(*runs: str | Path) -> None:
    """Compare two runs' losses and parameters."""
    one, other = ([row["loss"] for row in read_rows(Path(run) / "metrics.jsonl")] for run in runs)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5, err_msg=str(runs))
    one, other = (jax.tree.leaves(load_params(run, "last")[1]) for run in runs)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=str(runs))


ON_EIGHT = """
from tests.cli.test_stages import MESH, ON_A_MESH, ONCE, SPOKEN, Workshop, generate
for name in ON_A_MESH:
    Workshop.run(None, name, f"{name} on eight".replace(" ", "-"), *MESH, *ONCE)
print("spoken:")
generate.main([*SPOKEN, *MESH])
"""
MESH = ["--fsdp", "2", "--tensor", "2"]
ON_A_MESH = [
    "classify",
    "classify the last layer",
    "sft",
    "sft with adapters",
    "reward",
    "dpo",
    "dpo with adapters",
    "ppo",
]
ONCE = ["--save_interval", "4"]  # at the end
SPOKEN = "--init_from sft --start Who? --max_new_tokens 12 --num_samples 3 --temperature 1".split()


@pytest.mark.slow
def test_stages_and_decoding_on_eight_devices_are_those_on_one(here, capsys):
    """Losses and parameters; of PPO with rollouts, reference and reward model; and the text that is generated."""
    wholes = [here.whole(name) for name in ON_A_MESH]
    flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    eight = processes.run([sys.executable, "-c", ON_EIGHT], check=True, env=env, stdout=subprocess.PIPE)
    for whole in wholes:
        assert_close(whole, f"{whole}-on-eight")
    one, other = (np.load(f"dpo{where}/reference.npz") for where in ("", "-on-eight"))
    for part in ("train", "val"):
        np.testing.assert_allclose(one[part], other[part], rtol=1e-5)
    capsys.readouterr()
    generate.main(SPOKEN)
    assert eight.stdout.decode().partition("spoken:\n")[2] == capsys.readouterr().out


ON_TWO = {
    "classify the last layer": [],
    "sft with adapters": ["--tensor", "2", "--sample_interval", "none"],
    "reward": ["--fsdp", "2"],
    "dpo": ["--fsdp", "2", "--sample_interval", "none"],
    "ppo": ["--fsdp", "2"],
}
IN_EACH = """
from tests.cli.test_stages import ON_TWO, ONCE, SPOKEN, Workshop, evaluate, generate
for name, mesh in ON_TWO.items():
    Workshop.run(None, name, f"{name} on two".replace(" ", "-"), "--distributed", *mesh, *ONCE)
for name in ("sft", "reward"):
    evaluate.main([name, "--fsdp", "2", "--distributed", "--json", name + "-on-two.json"])
generate.main([*SPOKEN, "--distributed", "--tensor", "2"])
"""


@pytest.fixture
def on_two(here) -> list[bytes]:
    """What two processes print that run stages, one after the other, and then decode."""
    for name in ON_TWO:
        here.whole(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2"}
    env["JAX_COORDINATOR_ADDRESS"] = address
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                processes.started(
                    [sys.executable, "-c", IN_EACH],
                    env={**env, "JAX_PROCESS_ID": str(number)},
                    stdout=subprocess.PIPE,
                )  # fmt: skip
            )
            for number in range(2)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return outputs


@pytest.mark.slow
def test_stages_evaluation_and_decoding_in_two_processes_are_those_in_one(on_two, capsys):
    for name in ON_TWO:
        assert_close(name.replace(" ", "-"), f"{name.replace(' ', '-')}-on-two")
    for name in ("sft", "reward"):
        evaluate.main([name, "--json", f"{name}-on-one.json"])
        one, two = (json.loads(Path(f"{name}-on-{n}.json").read_text())["results"][name] for n in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5)
    first, second = on_two
    capsys.readouterr()
    generate.main(SPOKEN)
    assert first.decode().endswith(capsys.readouterr().out)
    assert b"Gloo" in second.splitlines()[-1], "the first process speaks for both"


@pytest.mark.parametrize("name", ["classify", "sft with adapters", "reward", "dpo", "ppo"])
def test_a_page_is_written_at_the_end(here, capsys, monkeypatch, name: str):
    """From runs that are there already, to which one more update is added; its still pictures are drawn for one."""
    if name != "classify":
        from jaxgpt.explore.pictures import VIEWS  # and matplotlib, which other processes of this file don't need

        monkeypatch.setattr("jaxgpt.explore.page.pictures", lambda *_, **__: dict.fromkeys(VIEWS, ""))
    out = Path(f"page-of-{CASES[name][0]}")
    shutil.copytree(here.whole(name), out)
    capsys.readouterr()
    here.run(name, str(out), "--explore", "true", "--max_iters", "5", "--init_from", "resume")
    assert f"page:  {out / 'explore.html'}; open it" in capsys.readouterr().out
    page = (here.folder / out / "explore.html").read_text(encoding="utf-8")
    says = {
        "classify": "The run trained labels",
        "reward": "The run trained scores",
        "dpo": "more than its reference the model prefers",
    }
    assert {"sft with adapters": "(LoRA)", "ppo": "value head", **says}[name] in page
    assert '"stage":"' + CASES[name][0] in page


def test_a_page_of_pretraining_shows_its_own_validation_text(here, capsys):
    shutil.copytree("pretrained", "page-of-pretrain")
    argv = ["--init_from", "resume", "--out_dir", "page-of-pretrain", "--max_iters", "5", "--explore", "true"]
    train.main(argv)
    assert "page:  page-of-pretrain/explore.html; open it" in capsys.readouterr().out
    page = Path("page-of-pretrain/explore.html").read_text(encoding="utf-8")
    [ids] = re.findall(r'"ids":(\[[\d,]+\])', page)[:1]
    shown = load_tokenizer("page-of-pretrain").decode(json.loads(ids))
    assert shown and shown in TEXT and '"stage":"pretrain"' in page


@pytest.mark.parametrize(
    "name", ["classify", "sft with adapters", "reward", "dpo", pytest.param("ppo", marks=pytest.mark.slow)]
)
def test_an_optimizer_and_an_objective_that_are_handed_over_are_the_runs(here, name: str):
    """Twice the stage's own objective, by an optimizer that moves nothing."""
    once, double = (f"{times}-{CASES[name][0]}" for times in ("once", "twice"))
    plain = train.read_stage(here.argv(name, once, "--max_iters", "2"))
    type(plain)(plain.flags, optimizer=optax.set_to_zero()).run(once)

    def twice(model: GPT) -> Objective:
        own = stage.make_objective(model)

        def objective(params, batch, key) -> Sums:
            sums = own(params, batch, key)
            return replace(sums, loss=2 * sums.loss)

        return objective

    stage = type(plain)(plain.flags, optimizer=optax.set_to_zero(), objective=twice)
    stage.run(double)
    rows, mine = (read_rows(Path(out) / "metrics.jsonl") for out in (once, double))
    losses, doubled = ([row["loss"] for row in found if row["split"] == "train"] for found in (rows, mine))
    np.testing.assert_allclose(doubled, 2 * np.asarray(losses), rtol=1e-5)
    first, *_, last = [row["loss"] for row in mine if row["split"] == "val"]
    assert first == last, "nothing has moved"
    assert all(row["lr"] is None for row in mine if row["split"] == "train"), "the flags' schedule was not followed"


def test_answers_are_compared_side_by_side(here, capsys):
    Path("prompts.txt").write_text("Who is there?\nWhat does he want?\n")
    generate.main("--compare pretrained sft --prompts prompts.txt --temperature 0 --max_new_tokens 4".split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompts.txt:1: Who is there?" and "prompts.txt:2: What does he want?" in lines
    assert lines[1].split() == ["pretrained", "|", "sft"]


def test_a_label_that_was_not_trained_on_is_named(here, capsys):
    Path("val.csv").write_text("text,label\nWho is there?,who\nWhy?,why\n")
    argv = ["classify", "--init_from", "pretrained", "--dataset", "classify.jsonl", "--val_dataset", "val.csv"]
    error = errors_of(capsys, lambda: train.main([*argv, "--out_dir", "none"]))
    assert error.startswith("error: val.csv:3: label 'why' is none of 'what', 'who'")


@pytest.mark.parametrize(("labels", "kept"), [("01", True), (["LABEL_0", "LABEL_1"], True), ("ab", False)], ids=str)
def test_a_classifier_keeps_its_trained_head_for_the_numbers_of_its_labels(here, capsys, labels, kept):
    """As `GPT2ForSequenceClassification` has them where nobody has named them."""
    if not Path("classifier").exists():
        config, params = load_params("pretrained")
        head = np.full((2, config.n_embd), 0.5, np.float32)
        save_pretrained("classifier", replace(config, labels=("LABEL_0", "LABEL_1")), {**params, "score": head})
        load_tokenizer("pretrained").save("classifier")
    rows = [f"{q}\t{labels[i % 2]}" for i, (q, _) in enumerate(ASKED * 4)]
    Path("numbers.tsv").write_text("\n".join(["sentence\ttarget", *rows, ""]))
    stage = Classify(init_from="classifier", dataset="numbers.tsv", text_column="sentence", label_column="target")
    stage.open(Path("none"), None)
    assert (stage.config.labels == ("LABEL_0", "LABEL_1")) == kept
    assert bool((np.asarray(stage.params["score"]) == 0.5).all()) == kept
    assert ("makes way for one for a, b" in capsys.readouterr().out) != kept


def test_a_file_that_is_sorted_by_label_is_evaluated_as_a_whole(here, capsys):
    """By few batches, too: a new head takes nearly all texts for one label, so the first rows would say 0 or 1."""
    rows = [f"{q},{label}" for label, q in (("a", "Who is there?"), ("b", "What does he want?")) for _ in range(100)]
    Path("sorted.csv").write_text("\n".join(["text,label", *rows[:120], ""]))
    Path("labels.csv").write_text("text,label\nWho?,a\nWhat?,b\n")
    words = "--init_from pretrained --dataset labels.csv --val_dataset sorted.csv --out_dir by-label --max_iters 1"
    train.main(["classify", *words.split(), "--eval_iters", "5", "--tensorboard=false"])
    assert "eval:  40 of 120 in each evaluation" in capsys.readouterr().out
    [logged, *_] = [row["accuracy"] for row in read_rows(Path("by-label/metrics.jsonl")) if row["split"] == "val"]
    train.main(["classify", *words.split(), "--eval_only"])
    whole = float(capsys.readouterr().out.rpartition("val accuracy ")[2].split(",")[0])
    assert min(whole, 1 - whole) == pytest.approx(1 / 6, abs=1e-3) and abs(logged - whole) < 0.05


def test_a_dataset_is_asked_for(capsys):
    assert "--dataset is missing" in errors_of(capsys, lambda: train.main(["sft"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sfft"], "there is no stage 'sfft'; valid are classify, sft, reward, dpo, ppo"),
        (["sft", "--dataset", "no.jsonl"], "no.jsonl"),
        (["dpo", "--reference", "live"], "--reference live: only with --lora_rank"),
        (["sft", "--lora_alpha", "3"], "--lora_alpha 3.0: only with --lora_rank"),
        (["sft", "--train_layers", "head"], "no head that scores"),
        (["classify", "--train_layers", "last_3"], "from 1 to n_layer, 1"),
        (["ppo"], "one of --reward_model and --reward_function"),
        (["ppo", *PPO, "--init_from", "sft", "--reward_model", "sft"], "--reward_model sft: no reward model"),
        (["ppo", *PPO, "--init_from", "sft", "--reward_function", "none.py:f"], "no file none.py"),
        (
            ["ppo", *PPO, "--init_from", "sft", "--reward_model", "laid-out-otherwise"],
            "--reward_model laid-out-otherwise: its chat template is another than that of sft",
        ),
        (["ppo", *PPO, *FUNCTION], "ppo.jsonl:1: messages need a chat template"),
        (["reward", "--dataset", "sft.jsonl"], "sft.jsonl:1: no field 'chosen'"),
        (["sft", "--out_dir", "reward", "--init_from", "resume"], "--out_dir reward holds a run of reward, not of sft"),
        (["sft", "--block_size", "4"], "none of the 11 conversations"),
        (["classify", "--block_size", "2", "--too_long", "error"], " tokens, but there is room for 2"),
        (["sft", "--base", "sft"], "--base sft: only with --init_from auto"),
        (["sft", "--val_dataset", "sft.jsonl", "--val_fraction", "0.5"], "--val_fraction 0.5: not with --val_dataset"),
        (["ppo", *PPO, *FUNCTION, *LORA], "lora_dropout is 0.1; ppo compares probabilities"),
        (["ppo", *PPO, *FUNCTION, "--dropout", "0.1"], "dropout is 0.1; ppo compares probabilities"),
        (
            ["ppo", *PPO, *FUNCTION, "--max_iters", "1000000000"],
            "max_iters 1000000000 of 4 updates each are 4000000000 updates; there may be at most 2147483647",
        ),
        (["ppo", *PPO, *FUNCTION, "--kl_horizon", "9"], "kl_horizon 9.0: only with kl_target"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(here, capsys, words: list[str], message: str):
    stage, *flags = words
    given = {"--init_from": "pretrained", "--out_dir": "none", "--dataset": f"{stage}.jsonl"}
    more = [word for name, value in given.items() if name not in flags for word in (name, value)]
    assert message in errors_of(capsys, lambda: train.main([stage, *more, *flags]))
    assert not Path("none/config.json").exists()


MORE_IDS = "more-ids: its tokenizer has 281 ids, but its embedding table 280 rows"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--dataset", "text.txt"],
        *(["train", stage, "--dataset", f"{stage}.jsonl"] for stage in ("classify", "sft", "reward", "dpo")),
        ["train", "ppo", "--dataset", "ppo.jsonl", *PPO, *FUNCTION],
        ["generate"],
        ["generate", "--compare", "pretrained", "more-ids", "--prompts", "ppo.jsonl"],
        ["generate", "--draft", "more-ids", "--init_from", "pretrained"],
    ],
    ids=" ".join,
)
def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(here, capsys, words: list[str]):
    """Their rows would be NaN, and a run of skipped updates would end well."""
    command, *flags = words
    begin = [] if {"--init_from", "--compare"} & {*flags} else ["--init_from", "more-ids"]
    out = ["--out_dir", "none"] if command == "train" else []
    run = {"train": train.main, "generate": generate.main}[command]
    assert MORE_IDS in errors_of(capsys, lambda: run([*flags, *begin, *out]))
    assert not Path("none/config.json").exists()


def test_a_run_whose_tokenizer_was_given_more_ids_does_not_go_on(here, capsys):
    again = ["--out_dir", "more-ids", "--init_from", "resume", "--max_iters", "9", "--ignore_data_change"]
    assert MORE_IDS in errors_of(capsys, lambda: train.main(again))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("dpo with adapters", "ppo with adapters")]


@pytest.mark.parametrize("name", ["reward", "dpo", "ppo", *SLOW])
def test_a_run_is_measured_on_its_own_data_as_its_metrics_say(here, capsys, name: str):
    folder = here.whole(name)
    evaluate.main([str(folder), "--json", "out.json"])
    found = json.loads(Path("out.json").read_text())["results"][str(folder)]
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["split"] == "val" and row["step"] in saved]
    best = min(rows, key=lambda row: row["loss"])
    shared = {"score", "kl", "ended"} if name.startswith("ppo") else {"accuracy", "margin", "reward_chosen"}
    assert shared <= set(found) & set(best)
    for figure in shared:
        assert found[figure] == pytest.approx(best[figure], abs=1e-4), figure


def test_what_a_run_s_own_data_can_not_be_measured_by_is_said(here, capsys):
    folder = str(here.whole("ppo"))
    error = errors_of(capsys, lambda: evaluate.main([folder, "--quantize", "int8"]))
    assert f"--quantize int8: {folder} is a run of ppo" in error
    shutil.copytree(here.whole("dpo"), "dpo-elsewhere")
    pairs = Path("dpo.jsonl").read_text()
    try:
        Path("dpo.jsonl").write_text(pairs.replace("bread", "wine"))
        error = errors_of(capsys, lambda: evaluate.main(["dpo-elsewhere"]))
    finally:
        Path("dpo.jsonl").write_text(pairs)
    assert "dpo-elsewhere does not fit what is asked" in error and "--dataset measures on other data" in error


def next_words(printed: str) -> list[str]:
    """Return the words of the command that a run's last line names, without those that call it."""
    line = printed.splitlines()[-1]
    assert line.startswith("next:  ")
    return shlex.split(line.removeprefix("next:  "))[1:]


@pytest.mark.usefixtures("unchecked_types")  # of which JAX makes others to read a program
def test_what_comes_after_a_reward_model_works_as_it_is_printed(here, capsys):
    here.whole("sft")
    here.run("reward", "scores", "--max_iters", "1", "--warmup_iters", "0")
    words = next_words(capsys.readouterr().out)
    train.main([*words, *PPO, "--dry_run"])
    assert "memory" in capsys.readouterr().out
    assert words[words.index("--out_dir") + 1] == "out-ppo"


def test_what_comes_after_a_classifier_works_though_it_was_done_before(here, capsys):
    Path("labels-for-pytorch").mkdir()
    here.run("classify", "labels", "--max_iters", "1", "--warmup_iters", "0")
    words = next_words(capsys.readouterr().out)
    assert words == ["labels", "labels-for-pytorch-2"]
    convert.main(words)
    assert (Path("labels-for-pytorch-2") / "model.safetensors").exists()


@pytest.mark.parametrize("stage", ["classify", "sft", "reward", "dpo", "ppo"])
def test_help_says_that_the_data_set_is_required(stage, capsys):
    with pytest.raises(SystemExit):
        train.main([stage, "--help"])
    shown = " ".join(capsys.readouterr().out.partition("--dataset ")[2].partition("--val_dataset")[0].split())
    assert shown.endswith("(required)") and "default" not in shown
