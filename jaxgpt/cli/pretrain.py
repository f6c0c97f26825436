"""Pretraining from end to end: text → tokens → batches → step → checkpoints → a sample."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgpt.cli.start import open_start, record_start, run_record, use_folder
from jaxgpt.decode.engine import generate
from jaxgpt.devices import compute_dtype, start_devices
from jaxgpt.hosts import refuse_disagreement, together
from jaxgpt.mesh import host_shard, make_mesh
from jaxgpt.model.atlas import count, parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.layers import GPT
from jaxgpt.text.batches import Batch, eval_batch, random_batch
from jaxgpt.text.corpus import Corpus
from jaxgpt.train import objectives
from jaxgpt.train.checkpoint import Checkpoints, quiet_traces
from jaxgpt.train.config import TrainConfig
from jaxgpt.train.manifest import Progress
from jaxgpt.train.metrics import plot
from jaxgpt.train.state import init_params
from jaxgpt.train.trainer import Task, Trainer


def pretrain(flags: TrainConfig) -> None:
    """Train on next tokens as the flags say, and show what came of it."""
    start_devices(flags.device, distributed=flags.distributed, debug_nans=flags.debug_nans)
    quiet_traces()
    folder = Path(flags.out_dir)
    with use_folder(flags, folder) as begun:
        if begun is not None and begun.step >= flags.max_iters:
            print(f"{folder} is already done: step {begun.step} of {flags.max_iters}")
            return
        with together():
            config, params, corpus = open_start(flags, folder, resuming=begun is not None)
        refuse_disagreement(run_record(flags, config, corpus))
        mesh = make_mesh(fsdp=flags.fsdp, tensor=flags.tensor)
        trainer = Trainer(flags, pretrain_task(flags, config, params, corpus, mesh), mesh)
        if flags.dry_run:
            print(trainer.budget())
            return
        with together():
            if jax.process_index() == 0:
                record_start(flags, folder, config, corpus, new=begun is None)
        describe(config, corpus)
        checkpoints = Checkpoints(folder, keep=flags.keep)
        if begun is None:
            state = trainer.start()
        else:
            state = trainer.resume(checkpoints, begun.step)
        state = trainer.fit(folder, state, begun or Progress(0), checkpoints)
        if int(state.step) == flags.max_iters:
            show_results(flags, folder, config, state.params, corpus)


def pretrain_task(flags: TrainConfig, config: GPTConfig, params: Any | None, corpus: Corpus, mesh: Mesh) -> Task:
    """Return random windows of the corpus, and next tokens as the objective; without parameters, from new ones."""
    model = GPT(config, jnp.dtype(compute_dtype(flags.dtype)), flags.remat)
    length = flags.block_size or config.n_positions
    part = host_shard(mesh)
    rows = flags.batch_size * flags.gradient_accumulation_steps

    def batches(step: int) -> Batch:
        corpus.train.check_unchanged()
        return random_batch(corpus.train, seed=flags.seed, step=step, batch_size=rows, block_size=length, **part)

    def evaluation(index: int) -> Batch:
        corpus.val.check_unchanged()
        return eval_batch(
            corpus.val, index=index, count=flags.eval_iters, batch_size=flags.batch_size, block_size=length, **part
        )

    def begin(shardings: Any) -> Any:
        return init_params(model, seed=flags.seed, shardings=shardings) if params is None else params

    return Task(
        config=config,
        parameters=tuple(parameters(config)),
        begin=begin,
        objective=objectives.pretrain(model),
        batches=batches,
        evaluation=evaluation,
        evaluations=flags.eval_iters,
    )


def describe(config: GPTConfig, corpus: Corpus) -> None:
    """Say what is about to be trained on what."""
    for note in corpus.notes:
        print(f"note: {note}")
    print(
        f"model: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context {config.n_positions};"
    )
    print(f"       {count(config)['total']:,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"data:  {corpus.name}, {len(corpus.train):,} tokens to train on, {len(corpus.val):,} to validate on;")
    print(f"       {corpus.tokenizer.name} tokenizer with {corpus.tokenizer.vocab_size:,} ids")


def show_results(flags: TrainConfig, folder: Path, config: GPTConfig, params: Any, corpus: Corpus) -> None:
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
        eos_token_id=config.eos_token_ids,
        seed=flags.seed,
        overflow="slide",
    )
    if jax.process_index() > 0:
        return
    sample, samples = tokenizer.decode(prompt + out[0]), folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / f"{flags.max_iters}.txt").write_text(sample, encoding="utf-8")
    command = shlex.join([*sibling_command("generate"), "--init_from", str(folder), "--overflow", "slide"])
    print(f"\n{sample}\n\ncurve: {plot(folder)}\nnext:  {command}")


def sibling_command(name: str) -> list[str]:
    """Return how to call another of the commands, in the way in which this one was."""
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return [f"jaxgpt-{name}"]
    return [os.path.relpath(sys.executable), os.path.relpath(script.with_name(f"{name}.py"))]
