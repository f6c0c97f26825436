"""Pretraining: text → tokens → batches → next tokens as the objective → a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgpt import data, decode, objectives, runs, tokenizers, train
from jaxgpt.commands import next_command
from jaxgpt.data.hub import is_hub, read_hub
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.stages.base import Record, Stage, show_curve
from jaxgpt.stages.planning import print_plan
from jaxgpt.stages.pretrain_config import PRESET, PretrainConfig
from jaxgpt.train.resume import refuse_changed_flags, refuse_differences
from jaxgpt.visible import visible


class Pretrain(Stage[PretrainConfig]):
    """Next tokens of a corpus, from new weights or from a pretrained model's.

    Attributes:
        corpus: the data in tokens.
        params: the weights to begin with; None for new ones.
        new: whether the run began with new ones.
    """

    name = "pretrain"
    per_token = True
    Flags = PretrainConfig
    recorded = ("new",)
    counted = True
    corpus: data.Corpus
    params: Any
    new: bool

    def open(self, folder: Path, record: Record | None) -> None:
        self.params = None
        if record is not None:
            self._reopen(folder, record)
        elif self.flags.init_from in ("scratch", "auto"):
            self._begin_anew()
        else:
            self._begin_with_model()
        if record is None:
            self.new, self.tokenizer = self.params is None, self.corpus.tokenizer
        names = self.flags.datasets
        named: dict[str, str | None] = {
            f"dataset {number}" if names[1:] else "dataset": name for number, name in enumerate(names, 1)
        }
        named["val_dataset"] = self.flags.val_dataset
        train = self.corpus.train
        self.data = {
            "train": self.corpus.train.fingerprint,
            "val": self.corpus.val.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            **({"weights": train.shown_weights} if isinstance(train, data.Mixture) else {}),
            **{name: read_hub(value)[1] for name, value in named.items() if value is not None and is_hub(value)},
        }
        train_size, val_size = len(self.corpus.train), len(self.corpus.val)
        self.about = [
            *(f"note: {note}" for note in self.corpus.notes),
            f"data:  {self.corpus.name}, {train_size:,} tokens to train on, {val_size:,} to validate on;",
            f"       {self.corpus.tokenizer.name} tokenizer with {self.corpus.tokenizer.vocab_size:,} ids",
        ]
        if isinstance(train, data.Mixture):
            parts = zip(train.names, train.sources, train.weights, strict=True)
            self.about += [f"       {name}: {len(ids):,} tokens, {weight:.2%} of rows" for name, ids, weight in parts]

    def only_plans(self) -> bool:
        """With --plan, print what the run would take, and return True."""
        if self.flags.plan is not None:
            print_plan(self)
        return self.flags.plan is not None

    def described(self) -> GPTConfig:
        """Return the config of a new model, but for its vocabulary."""
        preset = GPTConfig.preset(self.flags.preset or PRESET)
        return self.flags.model(replace(preset, n_positions=self.flags.block_size or preset.n_positions))

    def check_length(self, config: GPTConfig) -> None:
        """Raise a UsageError unless a model's context is long enough for rows."""
        if (length := self.flags.block_size or 0) > config.n_positions:
            raise UsageError(f"block_size {length} is longer than the model's context, {config.n_positions}")

    def _begin_anew(self) -> None:
        """Describe a new model, and open the corpus in the tokens that it asks for."""
        flags, config = self.flags, self.described()
        self.corpus = self._open_corpus(flags.tokenizer, config)
        tokenizer = self.corpus.tokenizer
        eos = tokenizer.eos_token_id
        self.config = replace(config, vocab_size=tokenizer.vocab_size, bos_token_id=eos, eos_token_id=eos)

    def _begin_with_model(self) -> None:
        """Open a pretrained model, and the corpus in its tokens."""
        flags = self.flags
        if flags.preset is not None:
            only = "only with --init_from scratch"
            raise UsageError(f"--preset {flags.preset}: {only}; {flags.init_from} has its own model")
        config, self.params, tokenizer = runs.open_model(
            flags.init_from, allow_pickle=flags.allow_pickle, ignore_config_change=flags.ignore_config_change
        )
        self.config = flags.fine_tuned(config)
        rates = {rate: getattr(config, rate) for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
        refuse_differences(flags.init_from, config, replace(self.config, **rates))
        self.corpus = self._open_corpus(flags.tokenizer or tokenizer, config)
        if self.corpus.tokenizer.fingerprint != tokenizer.fingerprint:
            other = f"its ids mean other texts than those of {flags.init_from}"
            raise UsageError(f"--tokenizer {flags.tokenizer}: {other}; leave it out")

    def _reopen(self, folder: Path, record: Record) -> None:
        """Open the corpus of a run that goes on; its parameters are in its checkpoints."""
        refuse_changed_flags(self.flags, folder, record)
        self.config, self.new, self.tokenizer = record["model"], record["new"], tokenizers.load_tokenizer(folder)
        # As when the run began, so that its token files are found again; the hashes say whether all is the same. Those
        # of several data sets are found by their tokenizer, of which an earlier version may have made another.
        as_begun = self.new and not self.flags.ignore_data_change and not self.flags.datasets[1:]
        self.corpus = self._open_corpus(self.flags.tokenizer if as_begun else self.tokenizer, self.config)

    def _open_corpus(self, tokenizer: str | tokenizers.Tokenizer | None, config: GPTConfig) -> data.Corpus:
        """Return the data in tokens, long enough for rows of this model."""
        flags, length = self.flags, self.flags.block_size or config.n_positions
        self.check_length(config)
        return data.load_corpus(
            flags.datasets,
            tokenizer,
            dataset_weights=flags.dataset_weights,
            val_dataset=flags.val_dataset,
            cache_dir=flags.cache_dir,
            block_size=length,
            val_fraction=flags.val_fraction,
            bpe_vocab_size=flags.bpe_size,
            text_column=flags.text_column,
            document_separator=flags.document_separator,
            allow_special=flags.allow_special,
        )

    @property
    def block_size(self) -> int:
        """T, tokens in a row."""
        return self.flags.block_size or self.config.n_positions

    def init_params(self, shardings: Any) -> Any:
        if self.params is not None:
            return self.params
        return train.init_params(self.build_model(), seed=self.flags.seed, shardings=shardings)

    def make_objective(self, model: Any) -> objectives.Objective:
        return objectives.pretrain(model)

    def batch(self, step: int, *, shard: int = 0, num_shards: int = 1) -> data.Batch:
        self.corpus.train.check_unchanged()
        return data.random_batch(
            self.corpus.train,
            seed=self.flags.seed,
            step=step,
            batch_size=self.flags.batch_size * self.flags.gradient_accumulation_steps,
            block_size=self.block_size,
            shuffle=self.flags.shuffle,
            shard=shard,
            num_shards=num_shards,
        )

    def eval_batches(self, *, shard: int = 0, num_shards: int = 1) -> Iterator[data.Batch]:
        return self._spread(self.corpus.val, shard=shard, num_shards=num_shards)

    def evaluate(self, trainer: train.Trainer, params: Any) -> dict[str, float]:
        """Return the loss on fixed windows of the text to train on, as many as to validate on, and on those.

        Of a mixture there is also the loss of each of its sources, by name: its own are their weighted mean.
        """
        fixed = self._spread(self.corpus.train, **trainer.shard)
        found, val = {"train_loss": trainer.evaluate(params, fixed)["loss"]}, self.corpus.val
        if not isinstance(val, data.Mixture):
            return {**found, **super().evaluate(trainer, params)}
        each = [
            trainer.evaluate(params, self._windows(ids, count, **trainer.shard)) for ids, count, _ in self._shares(val)
        ]
        for name in each[0]:
            found[name] = sum(weight * one[name] for weight, one in zip(val.weights, each, strict=True))
        return {**found, **{f"loss_{name}": one["loss"] for name, one in zip(val.names, each, strict=True)}}

    def _spread(self, part: data.Tokens | data.Mixture, **shard: int) -> Iterator[data.Batch]:
        """Yield fixed batches of windows spread over a part of the corpus, weighted as a mixture's sources are."""
        for ids, count, weight in self._shares(part):
            for batch in self._windows(ids, count, **shard):
                yield batch if weight == 1 else replace(batch, weights=batch.weights * weight)

    def _shares(self, part: data.Tokens | data.Mixture) -> list[tuple[data.Tokens, int, float]]:
        """Return ids, how many batches of them are evaluated, and the weight of each batch."""
        count = self.flags.eval_iters
        return part.shares(count) if isinstance(part, data.Mixture) else [(part, count, 1.0)]

    def _windows(self, ids: data.Tokens, count: int, **shard: int) -> Iterator[data.Batch]:
        for index in range(count):
            ids.check_unchanged()
            yield data.eval_batch(
                ids,
                index=index,
                count=count,
                batch_size=self.flags.batch_size,
                block_size=self.block_size,
                **shard,
            )

    def record(self) -> dict[str, Any]:
        return {"new": self.new}

    def speak(self, params: Any) -> str:
        """Return what the model goes on with behind the first token of the text to validate on."""
        tokenizer, prompt = self.corpus.tokenizer, self._beginning(1)
        [new] = decode.generate(
            self.config,
            params,
            [prompt],
            max_new_tokens=self.flags.sample_tokens,
            temperature=0.8,
            top_k=200,
            vocab_size=tokenizer.vocab_size,
            seed=self.flags.seed,
            overflow="slide",
        )
        return tokenizer.decode(prompt + new)

    def _beginning(self, count: int) -> list[int]:
        """Return the first ids to validate on, of a mixture those of its first source."""
        val = self.corpus.val
        return (val.sources[0] if isinstance(val, data.Mixture) else val)[:count].tolist()

    def _start(self) -> list[str]:
        """Return the flag that samples need whose model knows neither a token that begins a text nor a line end."""
        if self.tokenizer.eos_token_id is not None or self.tokenizer.ends.begin:
            return []
        with contextlib.suppress(UsageError):  # no such character
            if self.tokenizer.encode_part("\n"):
                return []
        text = self.tokenizer.decode(self._beginning(100))
        return ["--start", next(filter(str.isalnum, text), text[0])]

    def show(self, folder: Path, params: Any) -> None:
        """Let the model speak, draw the curve, and say what can be done next."""
        sample = self.speak(params)
        if is_first():
            train.write_sample(folder, self.flags.max_iters, sample)
            print(f"\n{visible(sample)}\n")
        show_curve(folder, next_command("generate", "--init_from", folder, *self._start(), "--overflow", "slide"))
