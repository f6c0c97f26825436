"""What a run of `train.py` begins with: its folder, model, tokenizer and data, new or as they were.

Everything that can be known to be wrong is refused here, before anything is compiled.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxgpt.cli.sources import open_model
from jaxgpt.errors import UsageError
from jaxgpt.hosts import gather, together
from jaxgpt.model.config import GPTConfig
from jaxgpt.text.corpus import Corpus, load_corpus
from jaxgpt.text.tokenizers import Tokenizer, load_tokenizer
from jaxgpt.train.checkpoint import sweep
from jaxgpt.train.config import TrainConfig
from jaxgpt.train.folder import hold, holds_run, move_aside, read_record, versions, write_record
from jaxgpt.train.manifest import Progress, latest, steps

BPE_VOCAB_SIZE = 4096


@contextlib.contextmanager
def use_folder(flags: TrainConfig, folder: Path) -> Iterator[Progress | None]:
    """Hold the run's folder, and give what it has of a run to resume; a dry run leaves the folder alone."""
    begun, new = None, flags.init_from not in ("resume", "auto")
    with contextlib.ExitStack() as held:
        with together():
            if jax.process_index() == 0:
                if not flags.dry_run:
                    held.enter_context(hold(folder, new=new and not flags.overwrite))
                begun = None if new else find_begun(flags, folder)
                if not new and not flags.dry_run:
                    sweep(folder, 0 if begun is None else begun.step)
        begun = gather(None if begun is None else dataclasses.asdict(begun))[0]
        yield None if begun is None else Progress(**begun)


def find_begun(flags: TrainConfig, folder: Path) -> Progress | None:
    """Return the newest good checkpoint's progress; None if the run is to begin.

    Raises:
        UsageError: there is none to resume, or all are damaged.
    """
    begun = latest(folder)
    if begun is None:
        if steps(folder):
            raise UsageError(f"--init_from {flags.init_from}: every checkpoint in {folder} is damaged")
        if flags.init_from == "resume":
            raise UsageError(f"--init_from resume: {folder} holds no checkpoint; begin anew with --overwrite or auto")
        print(f"note: {folder} holds no checkpoint yet; starting from scratch")
    return begun


def open_start(flags: TrainConfig, folder: Path, *, resuming: bool) -> tuple[GPTConfig, Any, Corpus]:
    """Return the model's config, its parameters if it is a pretrained one, and the corpus in its tokens.

    Raises:
        UsageError: model, tokenizer, data and flags don't fit each other, or don't fit the run to resume.
    """
    if resuming:
        record = read_record(folder)
        config, begun = record["model"], record["flags"]
        fixed = ("preset", "tokenizer", "bpe_vocab_size", "val_fraction")
        refuse_differences(folder, {name: begun.get(name) for name in fixed}, {n: getattr(flags, n) for n in fixed})
        refuse_differences(folder, config, flags.model(config))
        if flags.ignore_data_change:
            return config, None, open_corpus(flags, load_tokenizer(folder), config)
        # As when the run began, so that its token files are found again; the hashes say whether all is the same.
        corpus = open_corpus(flags, flags.tokenizer if record["new"] else load_tokenizer(folder), config)
        advice = "; --ignore_data_change to go on all the same"
        refuse_differences(folder, record.get("data") or {}, data_record(corpus), advice)
        return config, None, corpus
    if flags.init_from in ("scratch", "auto"):
        preset = GPTConfig.preset(flags.preset or "shakespeare-char-cpu")
        config = flags.model(dataclasses.replace(preset, n_positions=flags.block_size or preset.n_positions))
        corpus = open_corpus(flags, flags.tokenizer, config)
        tokenizer = corpus.tokenizer
        eos = tokenizer.eos_token_id
        return replace(config, vocab_size=tokenizer.vocab_size, bos_token_id=eos, eos_token_id=eos), None, corpus
    if flags.preset is not None:
        raise UsageError(f"--preset {flags.preset}: only with --init_from scratch; {flags.init_from} has its own model")
    config, params, tokenizer = open_model(flags.init_from)
    changed = flags.model(config)
    rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    refuse_differences(flags.init_from, config, replace(changed, **{rate: getattr(config, rate) for rate in rates}))
    corpus = open_corpus(flags, flags.tokenizer or tokenizer, config)
    if corpus.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"--tokenizer {flags.tokenizer}: its ids mean other texts than those of {flags.init_from}; leave it out"
        )
    return changed, params, corpus


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


def record_start(flags: TrainConfig, folder: Path, config: GPTConfig, corpus: Corpus, *, new: bool) -> None:
    """Write what the run is defined by, so that nothing else is needed to resume it or to generate from it."""
    if new:
        if holds_run(folder):  # --overwrite, and nothing was wrong
            move_aside(folder)
        corpus.tokenizer.save(folder)
        from_scratch = flags.init_from in ("scratch", "auto")
    else:  # it has its tokenizer
        from_scratch = read_record(folder)["new"]
    write_record(folder, config, flags=dataclasses.asdict(flags), new=from_scratch, data=data_record(corpus))


def run_record(flags: TrainConfig, config: GPTConfig, corpus: Corpus) -> dict[str, Any]:
    """Return all that must be the same in every process of a run; paths may differ from host to host."""
    own = {"out_dir", "cache_dir", "dataset", "device"}
    record = {**dataclasses.asdict(flags), **dataclasses.asdict(config), **data_record(corpus), **versions()}
    return {name: value for name, value in record.items() if name not in own}


def data_record(corpus: Corpus) -> dict[str, str]:
    """Return hashes of all that decides the batches."""
    return {
        "train": corpus.train.fingerprint,
        "val": corpus.val.fingerprint,
        "tokenizer": corpus.tokenizer.fingerprint,
    }


def refuse_differences(where: object, before: Any, now: Any, advice: str = "") -> None:
    """Raise a UsageError that lists the fields in which two records differ."""
    before, now = (x if isinstance(x, dict) else dataclasses.asdict(x) for x in (before, now))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = [f"{name} is {now.get(name)}, was {before.get(name)}" for name in names]
    if differences:
        raise UsageError(f"{where} does not fit what is asked: {'; '.join(differences)}{advice}")
