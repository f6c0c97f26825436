"""Pretraining: text → tokens → batches → next tokens as the objective → a sample."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgpt.cli.run import Job, Record, next_command, refuse_differences
from jaxgpt.cli.sources import open_model
from jaxgpt.decode.engine import generate
from jaxgpt.devices import compute_dtype
from jaxgpt.errors import UsageError
from jaxgpt.mesh import host_shard
from jaxgpt.model.atlas import parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.layers import GPT
from jaxgpt.text.batches import Batch, eval_batch, random_batch
from jaxgpt.text.corpus import Corpus, load_corpus
from jaxgpt.text.tokenizers import Tokenizer, load_tokenizer
from jaxgpt.train import objectives
from jaxgpt.train.config import TrainConfig
from jaxgpt.train.metrics import plot
from jaxgpt.train.state import init_params
from jaxgpt.train.task import Task

BPE_VOCAB_SIZE = 4096


def prepare(flags: TrainConfig, folder: Path, record: Record | None) -> Job:
    """Open the model and the data."""
    if record is None:
        config, params, corpus = open_new(flags)
        new, tokenizer = params is None, corpus.tokenizer
    else:
        config, params, corpus = reopen(flags, folder, record)
        new, tokenizer = record["new"], load_tokenizer(folder)
    return Job(
        config=config,
        tokenizer=tokenizer,
        data={
            "train": corpus.train.fingerprint,
            "val": corpus.val.fingerprint,
            "tokenizer": tokenizer.fingerprint,
        },
        about=(
            *(f"note: {note}" for note in corpus.notes),
            f"data:  {corpus.name}, {len(corpus.train):,} tokens to train on, {len(corpus.val):,} to validate on;",
            f"       {corpus.tokenizer.name} tokenizer with {corpus.tokenizer.vocab_size:,} ids",
        ),
        task=partial(task, flags, config, params, corpus),
        show=partial(show, flags, folder, config, corpus),
        record={"new": new},
    )


def open_new(flags: TrainConfig) -> tuple[GPTConfig, Any, Corpus]:
    """Return the config, the parameters if it is a pretrained model, and the corpus in its tokens."""
    if flags.init_from in ("scratch", "auto"):
        preset = GPTConfig.preset(flags.preset or "shakespeare-char-cpu")
        config = flags.model(replace(preset, n_positions=flags.block_size or preset.n_positions))
        corpus = open_corpus(flags, flags.tokenizer, config)
        tokenizer = corpus.tokenizer
        eos = tokenizer.eos_token_id
        return replace(config, vocab_size=tokenizer.vocab_size, bos_token_id=eos, eos_token_id=eos), None, corpus
    if flags.preset is not None:
        raise UsageError(f"--preset {flags.preset}: only with --init_from scratch; {flags.init_from} has its own model")
    config, params, tokenizer = open_model(
        flags.init_from, allow_pickle=flags.allow_pickle, ignore_config_change=flags.ignore_config_change
    )
    changed = flags.fine_tuned(config)
    rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    refuse_differences(flags.init_from, config, replace(changed, **{rate: getattr(config, rate) for rate in rates}))
    corpus = open_corpus(flags, flags.tokenizer or tokenizer, config)
    if corpus.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"--tokenizer {flags.tokenizer}: its ids mean other texts than those of {flags.init_from}; leave it out"
        )
    return changed, params, corpus


def reopen(flags: TrainConfig, folder: Path, record: Record) -> tuple[GPTConfig, None, Corpus]:
    """Return the config and the corpus of a run that goes on; its parameters are in its checkpoints."""
    config, begun = record["model"], record["flags"]
    fixed = ("preset", "tokenizer", "bpe_vocab_size", "val_fraction")
    refuse_differences(folder, {name: begun.get(name) for name in fixed}, {n: getattr(flags, n) for n in fixed})
    refuse_differences(folder, config, flags.model(config))
    # As when the run began, so that its token files are found again; the hashes say whether all is the same.
    as_begun = record["new"] and not flags.ignore_data_change
    return config, None, open_corpus(flags, flags.tokenizer if as_begun else load_tokenizer(folder), config)


def open_corpus(flags: TrainConfig, tokenizer: str | Tokenizer | None, config: GPTConfig) -> Corpus:
    """Return the data in tokens, long enough for rows of this model."""
    length = flags.block_size or config.n_positions
    if length > config.n_positions:
        raise UsageError(f"block_size {length} is longer than the model's context, {config.n_positions}")
    return load_corpus(
        flags.dataset,
        tokenizer,
        cache_dir=flags.cache_dir,
        block_size=length,
        val_fraction=flags.val_fraction,
        bpe_vocab_size=flags.bpe_vocab_size or BPE_VOCAB_SIZE,
    )


def task(flags: TrainConfig, config: GPTConfig, params: Any | None, corpus: Corpus, mesh: Mesh) -> Task:
    """Return random windows of the corpus, and next tokens as the objective; without parameters, from new ones."""
    model = GPT(config, jnp.dtype(compute_dtype(flags.dtype)), flags.remat)
    length = flags.block_size or config.n_positions
    part = host_shard(mesh)
    rows = flags.batch_size * flags.gradient_accumulation_steps

    def begin(shardings: Any) -> Any:
        return init_params(model, seed=flags.seed, shardings=shardings) if params is None else params

    def batches(step: int) -> Batch:
        corpus.train.check_unchanged()
        return random_batch(corpus.train, seed=flags.seed, step=step, batch_size=rows, block_size=length, **part)

    def evaluation(index: int) -> Batch:
        corpus.val.check_unchanged()
        return eval_batch(
            corpus.val, index=index, count=flags.eval_iters, batch_size=flags.batch_size, block_size=length, **part
        )

    return Task(
        config=config,
        parameters=tuple(parameters(config)),
        begin=begin,
        objective=objectives.pretrain(model),
        batches=batches,
        evaluation=evaluation,
        evaluations=flags.eval_iters,
        counted=True,
    )


def show(flags: TrainConfig, folder: Path, config: GPTConfig, corpus: Corpus, params: Any) -> None:
    """Let the model speak, draw the curve, and say what can be done next."""
    tokenizer = corpus.tokenizer
    prompt = corpus.val[:1].tolist()
    out = generate(
        config,
        params,
        [prompt],
        max_new_tokens=flags.sample_tokens,
        temperature=0.8,
        top_k=200,
        vocab_size=tokenizer.vocab_size,
        seed=flags.seed,
        overflow="slide",
    )
    if jax.process_index() > 0:
        return
    sample, samples = tokenizer.decode(prompt + out[0]), folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / f"{flags.max_iters}.txt").write_text(sample, encoding="utf-8")
    command = next_command("generate", "--init_from", folder, "--overflow", "slide")
    print(f"\n{sample}\n\ncurve: {plot(folder)}\nnext:  {command}")
