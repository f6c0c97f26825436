"""The base of the stages after pretraining: the model they begin with, their examples, and what of it is trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jaxgpt import chat, decode, hf, model, objectives, runs, tokenizers, train
from jaxgpt.chat.records import BadRecords, TooLong
from jaxgpt.commands import next_command
from jaxgpt.data.sources import VAL_FRACTION
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.flags import Count, PathName, Positive, Rate, Rows, Share, flag
from jaxgpt.model.atlas import Parameter, count, parameters
from jaxgpt.model.lora_config import Alpha, LoRA
from jaxgpt.runs.folder import BASE
from jaxgpt.runs.manifest import latest
from jaxgpt.stages.base import Record, Stage
from jaxgpt.train.config import Context, RunConfig
from jaxgpt.train.resume import refuse_changed_flags
from jaxgpt.visible import visible

FILES = "a file (.jsonl, .json, .parquet), a folder with a file for each split, or hub:OWNER/NAME[/CONFIG][:SPLIT]"
SHOWN_PROMPTS = 3
SHOWN_TOKENS = 200
SEPARATOR = "---------------"
_Any = TypeVar("_Any")


@dataclass(frozen=True)
class FineTuneConfig(RunConfig):
    """A run that begins with a model and learns from the user's own examples.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """

    init_from: PathName = flag(
        "auto",
        "auto: go on with the run in out_dir, or begin with --base; resume; or the model to begin with",
        on_resume="of the command",
    )
    base: PathName = flag(
        "out", "with auto, the model to begin with: a run's folder, a folder of weights, a hub name", per_host=True
    )
    dataset: PathName | None = flag(None, f"the examples: {FILES}", per_host=True, group="data", required=True)
    val_dataset: PathName | None = flag(
        None,
        "examples to validate on, likewise; none: the folder's or data set's own, or a part of it",
        per_host=True,
        group="data",
    )
    val_fraction: Share | None = flag(
        None,
        f"of the examples, for validation; none: {VAL_FRACTION} where there is no val_dataset",
        on_resume="fixed",
        group="data",
    )
    bad_records: BadRecords = flag(
        "drop",
        "what becomes of a record that can't be used: left out and counted, unless most are bad, or an error",
        group="data",
    )
    too_long: TooLong = flag(
        "cut",
        "what becomes of an example beyond block_size, counted at the start: cut (a conversation, as by TRL, and a "
        "text at the end, of a pair the prompt at its beginning, then the answers at their ends), left out, or an "
        "error",
        on_resume="fixed",
        group="data",
    )
    block_size: Context | None = flag(None, "tokens in a row of a batch; none: the model's context", on_resume="fixed")

    train_layers: str = flag(
        "all",
        "what is trained: all, last_K for the last K blocks, or head for the scores alone",
        on_resume="fixed",
        group="model",
    )
    lora_rank: Rows | None = flag(
        None,
        "train adapters of this rank (LoRA) instead of the weights; none: no adapters",
        on_resume="fixed",
        group="model",
    )
    lora_alpha: Alpha | None = flag(
        None, "weight of the adapters; none: twice their rank", on_resume="fixed", group="model"
    )
    lora_dropout: Rate = flag(0.0, "dropout rate of the adapters' inputs", group="model")
    lora_targets: str = flag(
        "c_attn,c_proj,c_fc", "the matrices that get adapters, by HF's names", on_resume="fixed", group="model"
    )

    max_iters: Count = flag(500, "updates in the whole run")
    learning_rate: Positive = flag(5e-5, "peak learning rate, reached after warmup")
    batch_size: Rows = flag(8, "rows of a micro-batch, over all devices")
    eval_interval: Count = flag(100, "updates between evaluations")
    save_interval: Count = flag(100, "updates between checkpoints")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is None:
            raise UsageError("--dataset is missing: a file with the examples; see --help")
        if self.lora is not None and self.train_layers != "all":
            raise UsageError(f"--train_layers {self.train_layers}: not with --lora_rank, which freezes all layers")
        if self.init_from != "auto" and self.base != FineTuneConfig.base and self.init_from != "resume":
            raise UsageError(f"--base {self.base}: only with --init_from auto, and --init_from is {self.init_from}")
        if self.val_dataset is not None and self.val_fraction is not None:
            raise UsageError(f"--val_fraction {self.val_fraction}: not with --val_dataset, which has the examples")
        if self.lora is None:
            for name in ("lora_alpha", "lora_dropout", "lora_targets"):
                if (value := getattr(self, name)) != getattr(FineTuneConfig, name):
                    raise UsageError(f"--{name} {value}: only with --lora_rank")

    @property
    def source(self) -> str:
        """The model that a new run begins with."""
        return self.base if self.init_from == "auto" else self.init_from

    @property
    def lora(self) -> LoRA | None:
        """The adapters to train, if any."""
        if self.lora_rank is None:
            return None
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        targets = tuple(name.strip() for name in self.lora_targets.split(","))
        return LoRA(rank=self.lora_rank, alpha=alpha, dropout=self.lora_dropout, targets=targets)


FineTuneFlags = TypeVar("FineTuneFlags", bound=FineTuneConfig)


class FineTune(Stage[FineTuneFlags]):
    """A stage that begins with a model, and whose data are examples.

    Attributes:
        source: where the model comes from, for messages.
        params: its weights at step 0; None where a run goes on whose checkpoints have all of them.
        examples: as token ids, those to train on ("train") and those to validate on ("val").
        keeps_base: the run needs the weights that it began with, even if all are trained.
    """

    source: str
    params: Any
    examples: Mapping[str, Any]
    keeps_base = False
    recorded = ("begun_from", "base", "lora")

    # What each stage says.

    def lay_out(self, part: str, rows: Any) -> Any:
        """Return the batch of a part's examples with the numbers `rows`; -1 fills up with a row of weight 0."""
        raise NotImplementedError

    # What all share.

    def open_base(self, folder: Path, record: Record | None) -> None:
        """Open the model to begin with, or that of a run that goes on."""
        flags = self.flags
        if record is None:
            config, params, self.tokenizer = runs.open_model(
                flags.source, allow_pickle=flags.allow_pickle, ignore_config_change=flags.ignore_config_change
            )
            config, self.params = hf.cut_padding(config, params, self.tokenizer.vocab_size)
            self.source, self.config = flags.source, flags.fine_tuned(config)
            return
        refuse_changed_flags(flags, folder, record)
        self.source, self.config, self.params = record["begun_from"], record["model"], None
        self.tokenizer = tokenizers.load_tokenizer(folder)
        if record.get("base"):
            if not (folder / BASE).is_dir():
                raise UsageError(f"{folder / BASE} is missing; without what the run began with it can't go on")
            _, self.params = runs.load_params(folder / BASE, ignore_config_change=flags.ignore_config_change)

    def add_labels(self, labels: tuple[str, ...], *, zero: bool = False) -> None:
        """Give the model a head for these labels: its own where it has one for them, else a new one.

        Args:
            labels: their names.
            zero: a new head's scores are all 0, as values should be that are to be learnt.
        """
        if set(self.config.labels or ()) == set(labels):
            return
        if self.config.labels is not None:
            print(f"note: the head for {', '.join(self.config.labels)} makes way for one for {', '.join(labels)}")
        self.config = replace(self.config, labels=labels)
        score = model.new_score(self.config, model.key_of(self.flags.seed, "head"), zero=zero)
        self.params = {**self.params, "score": score}

    def remove_labels(self) -> None:
        """Take a head that scores away."""
        self.config = replace(self.config, labels=None)
        self.params = self.params and {name: leaf for name, leaf in self.params.items() if name != "score"}

    def finish_opening(self, about: Sequence[str], more_data: Mapping[str, str] | None = None) -> None:
        """Note what the run is made of, once model and examples are there.

        Args:
            about: lines that say on what it is trained.
            more_data: hashes of what else decides what is learnt.
        """
        self.keeps_base = self.keeps_base or self.flags.lora is not None or self.flags.train_layers != "all"
        self.data = {**self._hashes(), **(more_data or {})}
        self.about = [*about, *self._eval_share(), *self._trained_share()]

    @property
    def template(self) -> chat.ChatTemplate | None:
        """The chat template that goes along with the tokenizer."""
        return chat.ChatTemplate.of(self.tokenizer)

    @property
    def room(self) -> int:
        """The largest number of tokens that an example may have."""
        size, context = self.flags.block_size, self.config.n_positions
        if size is not None and size > context:
            raise UsageError(f"block_size {size} is longer than the model's context, {context}")
        return size or context

    def read(self, read: Callable[..., list[_Any]]) -> tuple[list[_Any], list[_Any]]:
        """Return the records to train on and those to validate on; `read` is one of `jaxgpt.chat`'s functions."""
        flags, files = self.flags, self._files
        train, val = (
            [record for file in part for record in read(file, bad_records=flags.bad_records)]
            for part in (files.train, files.val)
        )
        return (train, val) if files.val else chat.split(train, flags.val_fraction or VAL_FRACTION, seed=0)

    @cached_property
    def _files(self) -> chat.ExampleFiles:
        """The files with the examples."""
        flags = self.flags
        assert flags.dataset is not None
        return chat.find_files(flags.dataset, flags.val_dataset, flags.val_fraction)

    @property
    def evaluated(self) -> int:
        """The number of examples that an evaluation reaches."""
        return self.flags.eval_iters * self.flags.batch_size

    def batch(self, step: int, *, shard: int = 0, num_shards: int = 1) -> Any:
        rows = chat.epoch_rows(
            len(self.examples["train"]),
            seed=self.flags.seed,
            step=step,
            batch_size=self.flags.batch_size * self.flags.gradient_accumulation_steps,
            shard=shard,
            num_shards=num_shards,
        )
        return self.lay_out("train", rows)

    def eval_batches(self, *, shard: int = 0, num_shards: int = 1) -> Iterator[Any]:
        drawn = self.rows_in_order("val", self.flags.eval_iters, shard=shard, num_shards=num_shards)
        return (self.lay_out("val", rows) for rows in drawn)

    def rows_in_order(
        self, part: str, batches: int | None = None, *, shard: int = 0, num_shards: int = 1
    ) -> Iterator[Any]:
        """Yield the numbers of a part's examples, batch by batch, each once; -1 fills the last batch up.

        They are all, or what fits into so many batches: `chat.eval_sample`.
        """
        size, rows = len(self.examples[part]), self.flags.batch_size
        own = {"batch_size": rows, "batches": batches, "shard": shard, "num_shards": num_shards}
        for index in range(min(-(-size // rows), size if batches is None else batches)):
            yield chat.eval_rows(size, index=index, **own)

    def parameters(self) -> tuple[Parameter, ...]:
        own, lora = tuple(parameters(self.config)), self.flags.lora
        return own if lora is None else (*own, *model.adapter_parameters(self.config, lora))

    def trained(self, path: tuple[str, ...]) -> bool:
        if self.flags.lora is not None:
            return model.is_beside(path)
        return train.trains(self.config, self.flags.train_layers)(path)

    def init_params(self, shardings: Any) -> Any:
        if (lora := self.flags.lora) is None:
            return self.params
        return model.add_adapters(self.config, self.params, lora, model.key_of(self.flags.seed, "adapters"))

    def objective(self) -> objectives.Objective:
        found, lora = super().objective(), self.flags.lora
        return found if lora is None else objectives.with_adapters(found, lora)

    def record(self) -> dict[str, Any]:
        lora = self.flags.lora
        return {"begun_from": self.source, "base": self.keeps_base, "lora": None if lora is None else asdict(lora)}

    def write_files(self, folder: Path, trainer: train.Trainer) -> None:
        if self.keeps_base:
            runs.save_params(folder / BASE, self.config, self.params)
            if is_first():
                self.tokenizer.save(folder / BASE)

    def best_params(self, folder: Path, params: Any) -> Any:
        """Return the weights that whoever opens the folder gets: the best, with adapters merged."""
        progress, lora = latest(folder, ()), self.flags.lora  # what is then read of it is verified
        if progress is not None and progress.best_step not in (None, progress.step):
            print(f"best:  step {progress.best_step}, by the loss on validation; the answers below are from it")
            return runs.load_params(folder, ignore_config_change=self.flags.ignore_config_change)[1]
        return params if lora is None else model.merge(params, lora)

    @property
    def shown_prompts(self) -> Sequence[Sequence[int]]:
        """The prompts that a model which speaks is shown to answer."""
        raise NotImplementedError

    def speak(self, params: Any) -> str:
        """Return the model's likeliest answers to some prompts, from all that the state has."""
        return self._answers(params if self.flags.lora is None else model.merge(params, self.flags.lora))

    def show_answers(self, folder: Path, params: Any) -> None:
        """Print the best model's answers, and keep them in the run's folder."""
        answers = self._answers(self.best_params(folder, params))
        if is_first() and answers:
            train.write_sample(folder, self.flags.max_iters, answers + "\n")
            print(f"\n{visible(answers)}\n")

    @cached_property
    def prompts_file(self) -> Path | str | None:
        """The stage's own prompts, as a file; None where they are in the conversations of pairs."""
        file = (self._files.val or self._files.train)[0]
        try:
            chat.read_prompts(file)
        except UsageError:
            return None
        return file

    def next_answers(self, folder: Path) -> str:
        """Return how to compare what the model answers now with what it answered before, on the stage's own prompts."""
        if self.prompts_file is None:
            return next_command("generate", "--init_from", folder)
        return next_command("generate", "--compare", self.source, folder, "--prompts", self.prompts_file)

    def _answers(self, params: Any) -> str:
        tokenizer, shown = self.tokenizer, []
        for prompt in self.shown_prompts:
            room = self.config.n_positions - len(prompt)
            [ids] = decode.generate(
                self.config,
                params,
                [prompt],
                max_new_tokens=min(room, SHOWN_TOKENS),
                vocab_size=tokenizer.vocab_size,
            )
            shown.append(f"{tokenizer.decode(prompt)}{tokenizer.decode(ids)}")
        return f"\n{SEPARATOR}\n".join(shown)

    def _hashes(self) -> dict[str, str]:
        """Return hashes of the files with the examples, and of what makes tokens of them."""
        files = {"dataset": self._files.train, "val_dataset": self._files.val}
        template = "" if self.template is None else self.template.source
        return {
            **{name: chat.fingerprint(paths) for name, paths in files.items() if paths},
            "tokenizer": self.tokenizer.fingerprint,
            "template": hashlib.sha256(template.encode()).hexdigest(),
        }

    def _eval_share(self) -> list[str]:
        """Return a line that says on how many examples the run is evaluated, where not on all."""
        count, most = len(self.examples["val"]), self.evaluated
        return (
            [f"eval:  {most:,} of {count:,} in each evaluation, always the same (--eval_iters)"] if most < count else []
        )

    def _trained_share(self) -> list[str]:
        """Return a line that says how many parameters are trained, where not all are."""
        moving = sum(math.prod(row.shape) for row in self.parameters() if self.trained(row.path))
        total = count(self.config)["total"]
        return [] if moving == total else [f"train: {moving:,} parameters, {moving / total:.2%} of the model's"]
