"""A stage from Python: what is handed over takes the place of its own, and a run is what train.py makes of it."""

import shutil

import jax
import numpy as np
import optax
import pytest

from jaxgpt.cli import train as command
from jaxgpt.data import corpus
from jaxgpt.data.batches import eval_batch
from jaxgpt.data.encoding import making
from jaxgpt.data.tokens.shuffle import shuffled_starts, windows_in_epoch
from jaxgpt.errors import UsageError
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective, Sums
from jaxgpt.objectives.next_tokens import pretrain
from jaxgpt.runs.weights import load_params
from jaxgpt.stages import Pretrain
from jaxgpt.stages.pretrain_config import PretrainConfig
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.loop import make_evaluate
from jaxgpt.train.metrics import read_rows

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "eval_iters": 1}
SHORT = {"max_iters": 4, "warmup_iters": 1, "log_interval": 1, "sample_tokens": 0, "tensorboard": False}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, object]:
    """Flags of a tiny run."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    return {"dataset": str(folder / "text.txt"), "cache_dir": str(folder / "cache"), **SMALL, **SHORT}


def test_a_run_from_python_is_that_of_the_command_bit_for_bit(given, tmp_path):
    Pretrain(**given).run(tmp_path / "here")
    command.main([f"--{name}={value}" for name, value in {**given, "out_dir": tmp_path / "there"}.items()])
    (_, here), (_, there) = (load_params(tmp_path / name, 4) for name in ("here", "there"))
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_a_run_draws_the_same_whatever_generator_an_environment_asks_for(given, tmp_path):
    """As TPUs' environments do: what a run goes on in is not always what it began in."""
    once = {**given, "dropout": 0.1, "max_iters": 2}
    Pretrain(**once).run(tmp_path / "usual")
    usual = {name: getattr(jax.config, name) for name in ("jax_default_prng_impl", "jax_threefry_partitionable")}
    try:
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")
        jax.config.update("jax_threefry_partitionable", False)
        Pretrain(**once).run(tmp_path / "other")
    finally:
        for name, value in usual.items():
            jax.config.update(name, value)
    (_, usually), (_, otherwise) = (load_params(tmp_path / name, 2) for name in ("usual", "other"))
    jax.tree.map(np.testing.assert_array_equal, usually, otherwise)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("flags", "more", "message"),
    [
        (PretrainConfig(), {"max_iters": 5}, "Pretrain takes all flags in a record or by their names, not both"),
        (OptimizerConfig(), {}, r"flags is OptimizerConfig\(.*; it must be PretrainConfig"),
        ("plays", {}, "flags is 'plays'; it must be PretrainConfig"),
    ],
)
def test_flags_are_one_record_of_the_stages_own(flags, more, message):
    assert Pretrain(PretrainConfig(max_iters=5)).flags == Pretrain(max_iters=5).flags
    with pytest.raises(UsageError, match=message):
        Pretrain(flags, **more)


def test_the_step_that_is_compiled_beside_the_evaluation_is_the_one_that_runs(given, tmp_path, unchecked_types):
    compiled = []

    def hear(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(kwargs["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        Pretrain(**given).run(tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert compiled.count("jit(step)") == 1


def test_an_optimizer_and_an_objective_that_are_handed_over_are_the_runs(given, tmp_path):
    def twice(model: GPT) -> Objective:
        plain = pretrain(model)

        def objective(params, batch, key) -> Sums:
            sums = plain(params, batch, key)
            return Sums(2 * sums.loss, sums.weight)

        return objective

    # Plain descent of twice the loss is that of the loss with steps twice as long.
    Pretrain(**given, optimizer=optax.sgd(0.25), objective=twice).run(tmp_path / "twice")
    Pretrain(**given, optimizer=optax.sgd(0.5)).run(tmp_path / "once")
    (_, two), (_, one) = (load_params(tmp_path / name, 4) for name in ("twice", "once"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), two, one)
    rows = [[row for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("twice", "once")]
    for a, b in zip(*rows, strict=True):
        np.testing.assert_allclose(a["loss"], 2 * b["loss"], rtol=1e-5)
    assert all(row["lr"] is None for row in rows[0] if row["split"] == "train"), "the flags' schedule was not followed"


def test_an_evaluation_has_the_loss_on_fixed_windows_of_the_text_to_train_on(given, tmp_path):
    stage = Pretrain(**{**given, "dropout": 0.5, "eval_interval": 2})
    stage.run(tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["split"] == "val"]
    assert [row["step"] for row in rows] == [0, 2, 4] and all({"train_loss", "loss"} < row.keys() for row in rows)
    _, params = load_params(tmp_path / "run", 4)
    windows = eval_batch(stage.corpus.train, index=0, count=1, batch_size=4, block_size=16)
    loss = make_evaluate(stage.objective())(params, [windows])["loss"]
    np.testing.assert_allclose(rows[-1]["train_loss"], loss, rtol=1e-6)


def test_a_mixture_is_evaluated_source_by_source_and_its_loss_is_their_weighted_mean(given, tmp_path):
    (tmp_path / "more.txt").write_text("That is the question, or not to be. " * 50)
    several = {**given, "dataset": (given["dataset"], str(tmp_path / "more.txt")), "tokenizer": "bpe", "eval_iters": 5}
    stage = Pretrain(**several, bpe_vocab_size=257, dataset_weights=(3.0, 1.0))
    stage.run(tmp_path / "run")
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    _, params = load_params(tmp_path / "run", 4)
    measured = make_evaluate(stage.objective())(params, stage.eval_batches())["loss"]
    np.testing.assert_allclose(row["loss"], measured, rtol=1e-6)
    np.testing.assert_allclose(row["loss"], 0.75 * row["loss_text"] + 0.25 * row["loss_more"], rtol=1e-6)
    assert abs(row["loss_text"] - row["loss_more"]) > 1e-3
    again = ["--init_from", "resume", "--out_dir", str(tmp_path / "run"), "--max_iters", "6"]
    with pytest.raises(SystemExit):
        command.main([*again, "--dataset_weights", "1", "1"])
    with pytest.raises(SystemExit):
        command.main([*again, "--dataset", str(tmp_path / "more.txt"), str(given["dataset"])])
    command.main([*again, "--dataset_weights", "0.75", "0.25"])


def test_a_mixture_goes_on_in_the_tokens_that_it_began_with(given, tmp_path, monkeypatch):
    (tmp_path / "more.txt").write_text("Zounds! A buzzing fuzz, a dizzy quiz. " * 50)
    flags = {**given, "cache_dir": str(tmp_path / "cache"), "tokenizer": "bpe", "bpe_vocab_size": 262}
    stage = Pretrain(**{**flags, "dataset": (given["dataset"], str(tmp_path / "more.txt"))})
    with monkeypatch.context() as patch:  # as earlier versions did
        patch.setattr(corpus, "make_tokenizer", lambda sources, *how: making.make_tokenizer(sources[:1], *how))
        stage.run(tmp_path / "run")
    shutil.rmtree(tmp_path / "cache")
    command.main(["--init_from", "resume", "--out_dir", str(tmp_path / "run"), "--max_iters", "5"])
    assert load_tokenizer(tmp_path / "run").fingerprint == stage.corpus.tokenizer.fingerprint
    anew = corpus.load_corpus(stage.flags.datasets, "bpe", bpe_vocab_size=262, cache_dir=tmp_path / "c", block_size=16)
    assert anew.tokenizer.fingerprint != stage.corpus.tokenizer.fingerprint


def test_a_shuffled_run_reads_every_window_once_and_stays_shuffled(given, tmp_path):
    stage = Pretrain(**given, shuffle=True)
    stage.run(tmp_path / "run")
    count = windows_in_epoch(len(stage.corpus.train), 16)
    read = np.concatenate([stage.batch(step).tokens for step in range(count // 4)])
    length = len(stage.corpus.train)
    starts = shuffled_starts(0, np.arange(len(read)), length=length, block_size=16, seed=stage.flags.seed, stream=0)
    assert len(set(starts.tolist())) == len(read)
    np.testing.assert_array_equal(read, np.stack([stage.corpus.train[start : start + 16] for start in starts]))
    with pytest.raises(SystemExit):
        command.main(
            ["--init_from", "resume", "--out_dir", str(tmp_path / "run"), "--max_iters", "6", "--shuffle=false"]
        )
