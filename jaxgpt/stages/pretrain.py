"""Pretraining: text → tokens → batches → next tokens as the objective → a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from jaxgpt import data, decode, objectives, runs, tokenizers, train
from jaxgpt.commands import next_command
from jaxgpt.data.hub import is_hub, read_hub
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.flags import CountOrZero, Name, PathName, Positive, Share, Whole, flag
from jaxgpt.model.config import LIMITS, GPTConfig
from jaxgpt.plan.targets import read_target
from jaxgpt.stages.base import Record, Stage, show_curve
from jaxgpt.stages.planning import print_plan
from jaxgpt.train.config import RunConfig, SampleConfig
from jaxgpt.train.resume import refuse_changed_flags, refuse_differences
from jaxgpt.visible import visible

PRESET = "shakespeare-char-cpu"
BPE_VOCAB_SIZE = 4096
Depth = Annotated[int, Whole(1, LIMITS["n_layer"])]
Width = Annotated[int, Whole(1, LIMITS["n_embd"])]
InnerWidth = Annotated[int, Whole(1, LIMITS["n_inner"])]
TrainedVocabulary = Annotated[int, Whole(257, LIMITS["vocab_size"])]  # 256 bytes and the end of text


@dataclass(frozen=True)
class PretrainConfig(SampleConfig, RunConfig):
    """A run of pretraining. What describes the model is none where the preset, or the model it starts from, decides.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    dataset: PathName = flag(
        "plays",
        "a file or folder of text, records (parquet, jsonl, csv …) or .bin tokens; "
        "hub:OWNER/NAME[/CONFIG][:SPLIT]; or a name: plays, shakespeare, wikitext2, wikitext103, openwebtext, fineweb",
        per_host=True,
        group="data",
    )
    val_dataset: PathName | None = flag(
        None,
        "what to validate on, likewise; none: the folder's or data set's own, or a part of it",
        per_host=True,
        group="data",
    )
    tokenizer: PathName | None = flag(
        None,
        "char, gpt2, bpe (trained on the data) or a folder; none: the model's own, or char",
        on_resume="fixed",
        group="data",
    )
    bpe_vocab_size: TrainedVocabulary | None = flag(
        None, f"tokens of a trained BPE; none: {BPE_VOCAB_SIZE}", on_resume="fixed", group="data"
    )
    val_fraction: Share | None = flag(
        None,
        "of the text, for validation; none: 0.1, of openwebtext and fineweb 0.0005",
        on_resume="fixed",
        group="data",
    )
    text_column: Name | None = flag(
        None, "of records, the column with the text; none: text", on_resume="fixed", group="data"
    )
    document_separator: Name | None = flag(
        None,
        "what separates documents in text files, such as <|endoftext|>; none: nothing",
        on_resume="fixed",
        group="data",
    )
    allow_special: bool = flag(
        False, "read special tokens that the texts spell as such", on_resume="fixed", group="data"
    )
    cache_dir: PathName | None = flag(
        None, "where token files and downloads are kept; none: ~/.cache/jaxgpt", per_host=True, group="data"
    )

    preset: Name | None = flag(
        None, f"a named model to begin from scratch with; none: {PRESET}", on_resume="fixed", group="model"
    )
    n_layer: Depth | None = flag(None, "layers", group="model")
    n_head: Width | None = flag(None, "attention heads", group="model")
    n_embd: Width | None = flag(None, "width of the residual stream", group="model")
    n_inner: InnerWidth | None = flag(None, "width of the feed-forward layers", group="model")
    bias: bool | None = flag(None, "biases in linear layers and layer norms", group="model")
    activation_function: str | None = flag(None, "the feed-forward layers', by HF's names", group="model")
    position_embedding: str | None = flag(None, "learned or sinusoidal", group="model")
    norm_position: str | None = flag(None, "pre (GPT-2) or post (the original transformer)", group="model")
    tie_word_embeddings: bool | None = flag(None, "whether the LM head is the embedding table", group="model")
    sample_tokens: CountOrZero = flag(300, "tokens of a sample", group="logging")
    plan: Name | None = flag(
        None,
        "devices, as v5e:4x4, h100:8 or h100:2x8: print what the run would take there, its best mesh and time, and end",
        on_resume="of the command",
    )
    price: Positive | None = flag(None, "with --plan, of all these devices for an hour", on_resume="of the command")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plan is not None:
            read_target(self.plan)
        elif self.price is not None:
            raise UsageError(f"--price {self.price}: only with --plan")
        if self.bpe_vocab_size is not None and self.tokenizer != "bpe":
            raise UsageError(f"--bpe_vocab_size {self.bpe_vocab_size}: only with --tokenizer bpe")
        if self.val_dataset is not None and self.val_fraction is not None:
            raise UsageError(f"--val_fraction {self.val_fraction}: not with --val_dataset, which is to validate on")

    @property
    def bpe_size(self) -> int:
        """Tokens of a trained BPE."""
        return self.bpe_vocab_size or BPE_VOCAB_SIZE


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
        named = {"dataset": self.flags.dataset, "val_dataset": self.flags.val_dataset}
        self.data = {
            "train": self.corpus.train.fingerprint,
            "val": self.corpus.val.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            **{name: read_hub(value)[1] for name, value in named.items() if value is not None and is_hub(value)},
        }
        train_size, val_size = len(self.corpus.train), len(self.corpus.val)
        self.about = [
            *(f"note: {note}" for note in self.corpus.notes),
            f"data:  {self.corpus.name}, {train_size:,} tokens to train on, {val_size:,} to validate on;",
            f"       {self.corpus.tokenizer.name} tokenizer with {self.corpus.tokenizer.vocab_size:,} ids",
        ]

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
        # As when the run began, so that its token files are found again; the hashes say whether all is the same.
        as_begun = self.new and not self.flags.ignore_data_change
        self.corpus = self._open_corpus(self.flags.tokenizer if as_begun else self.tokenizer, self.config)

    def _open_corpus(self, tokenizer: str | tokenizers.Tokenizer | None, config: GPTConfig) -> data.Corpus:
        """Return the data in tokens, long enough for rows of this model."""
        flags, length = self.flags, self.flags.block_size or config.n_positions
        self.check_length(config)
        return data.load_corpus(
            flags.dataset,
            tokenizer,
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
            shard=shard,
            num_shards=num_shards,
        )

    def eval_batches(self, *, shard: int = 0, num_shards: int = 1) -> Iterator[data.Batch]:
        return self._spread(self.corpus.val, shard=shard, num_shards=num_shards)

    def evaluate(self, trainer: train.Trainer, params: Any) -> dict[str, float]:
        """Return the loss on fixed windows of the text to train on, as many as to validate on, and on those."""
        fixed = self._spread(self.corpus.train, **trainer.shard)
        return {"train_loss": trainer.evaluate(params, fixed)["loss"], **super().evaluate(trainer, params)}

    def _spread(self, part: data.Tokens, *, shard: int = 0, num_shards: int = 1) -> Iterator[data.Batch]:
        """Yield fixed batches of windows spread over a part of the corpus."""
        for index in range(self.flags.eval_iters):
            part.check_unchanged()
            yield data.eval_batch(
                part,
                index=index,
                count=self.flags.eval_iters,
                batch_size=self.flags.batch_size,
                block_size=self.block_size,
                shard=shard,
                num_shards=num_shards,
            )

    def record(self) -> dict[str, Any]:
        return {"new": self.new}

    def speak(self, params: Any) -> str:
        """Return what the model goes on with behind the first token of the text to validate on."""
        tokenizer, prompt = self.corpus.tokenizer, self.corpus.val[:1].tolist()
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

    def _start(self) -> list[str]:
        """Return the flag that samples need whose model knows neither a token that begins a text nor a line end."""
        if self.tokenizer.eos_token_id is not None or self.tokenizer.ends.begin:
            return []
        with contextlib.suppress(UsageError):  # no such character
            if self.tokenizer.encode_part("\n"):
                return []
        text = self.tokenizer.decode(self.corpus.val[:100].tolist())
        return ["--start", next(filter(str.isalnum, text), text[0])]

    def show(self, folder: Path, params: Any) -> None:
        """Let the model speak, draw the curve, and say what can be done next."""
        sample = self.speak(params)
        if is_first():
            train.write_sample(folder, self.flags.max_iters, sample)
            print(f"\n{visible(sample)}\n")
        show_curve(folder, next_command("generate", "--init_from", folder, *self._start(), "--overflow", "slide"))
