"""`python -m jaxgpt.evaluate MODEL …`: how good models are, in a table with a column for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jaxgpt import chat, evaluate
from jaxgpt.chat.records import TooLong
from jaxgpt.cli.dialects import translate
from jaxgpt.cli.figures import finite, table
from jaxgpt.cli.processes import started
from jaxgpt.command_line import command, parse
from jaxgpt.commands import called
from jaxgpt.data.documents import SUFFIXES, TEXT_COLUMN, suffix_of
from jaxgpt.data.hub import columns_and_size, is_hub
from jaxgpt.data.opening import default_cache_dir, find_parts
from jaxgpt.data.record_files import read_records
from jaxgpt.errors import UsageError
from jaxgpt.files import write_json
from jaxgpt.flags import ComputeType, Count, Device, Name, PathName, Quantize, Rows, check_ranges, flag
from jaxgpt.model.config import VALUE
from jaxgpt.notes import note
from jaxgpt.runs.folder import read_record
from jaxgpt.runs.manifest import Which
from jaxgpt.stages import load_stage
from jaxgpt.train.config import Context
from jaxgpt.train.resume import refuse_differences

DESCRIPTION = "Measure how good models are: on texts, on tasks, on examples with a right answer."
CHAT_FIELDS = ("messages", "conversations")
Task = Literal["hellaswag", "lambada", "multiple_choice"]
Kind = Literal["auto", "text", "chat", "labels", "pairs"]


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    models: tuple[PathName, ...] = flag(
        help="runs' folders, folders of pretrained weights, or names on the Hugging Face hub", positional=True
    )
    dataset: PathName | None = flag(
        None,
        "a file, folder, corpus by name or hub:OWNER/NAME[/CONFIG][:SPLIT], of texts, records or "
        ".bin tokens, as in training; of what has a part to validate on that part; "
        "none: a run's own data to validate on",
        per_host=True,
        group="data",
    )
    task: Task | None = flag(
        None,
        "complete texts: hellaswag and lambada, from the dataset or, without one, downloaded; multiple_choice: records "
        "with context, choices and answer, the number of the right one",
        group="data",
    )
    kind: Kind = flag(
        "auto",
        "what the dataset is: text; chat: conversations, of which the assistant's tokens count; "
        "labels: labelled texts; pairs: of answers; auto: what the model is made for, and chat where records hold that",
        group="data",
    )
    text_column: Name | None = flag(None, "of records, the column with the text; none: text", group="data")
    label_column: Name | None = flag(None, "of labelled texts, the column with the label; none: label", group="data")
    block_size: Context | None = flag(None, "tokens that are read at once; none: the model's context", group="data")
    stride: Count | None = flag(
        None,
        "tokens by which windows begin one after another, each scoring what is new; none: windows side by side",
        group="data",
    )
    prefix: bool = flag(
        False, "read the end-of-text token before each text, so that its first token is scored, too", group="data"
    )
    too_long: TooLong = flag(
        "cut", "an example beyond block_size: cut as in training, left out, or an error; counted", group="data"
    )
    limit: Count | None = flag(None, "how many texts or examples to take, from the first on; none: all", group="data")
    cache_dir: PathName | None = flag(
        None, "where corpora and downloads are kept; none: ~/.cache/jaxgpt", per_host=True, group="data"
    )
    checkpoint: Which | None = flag(None, "of a run, the checkpoint of this step; none: the best", group="model")
    quantize: Quantize | None = flag(None, "bits of weights, w8a8 of activations too, as in decoding", group="model")
    allow_pickle: bool = flag(
        False, "also read pytorch_model.bin and ckpt.pt: tensors only, no code in them is run", group="model"
    )
    ignore_config_change: bool = flag(
        False, "take a run's config.json as it is, although it was changed by hand", group="model"
    )
    batch_size: Rows | None = flag(
        None, "rows at a time, over all devices; none: 8 a device", group="precision and devices"
    )
    dtype: ComputeType = flag("auto", "of activations; auto: bfloat16 on GPU and TPU", group="precision and devices")
    fsdp: Rows = flag(1, "devices that share one copy of the weights", group="precision and devices")
    tensor: Rows = flag(1, "devices that share each layer's heads", group="precision and devices")
    device: Device = flag("auto", "where to run", per_host=True, group="precision and devices")
    distributed: bool = flag(
        False, "one of several processes with one model: join the others", group="precision and devices"
    )
    json: PathName | None = flag(None, "also write all figures to this file", per_host=True, group="logging")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.json is not None and not Path(self.json).parent.is_dir():
            raise UsageError(f"--json {self.json}: there is no folder {Path(self.json).parent}")
        if repeated := next((one for one in self.models if self.models.count(one) > 1), None):
            raise UsageError(f"{repeated} is given twice; a column would stand there twice")
        if self.quantize is not None and self.fsdp * self.tensor > 1:
            raise UsageError(f"--quantize {self.quantize}: not with --fsdp or --tensor, which share weights out")
        if self.task == "multiple_choice" and self.dataset is None:
            raise UsageError("--task multiple_choice: --dataset is missing, a file of its examples")
        if self.dataset is None or self.task is not None:
            only = "only with --dataset" if self.task is None else f"not with --task {self.task}"
            for name in ("text_column", "label_column", "stride", "block_size", "prefix", "kind"):
                if (value := getattr(self, name)) != getattr(Options, name):
                    raise UsageError(f"--{name} {value}: {only}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    words = translate(sys.argv[1:] if argv is None else argv, Options)
    options = parse(Options, words, prog=called("evaluate"), description=DESCRIPTION)
    from jaxgpt.runs.weights import check_source

    for model in options.models:  # before the first is measured
        check_source(model)
    examples, files = None, find(options)
    if options.task is not None:
        examples = evaluate.read_task(options.task, options.dataset, cache_dir=options.cache_dir)[: options.limit]
    with started(options):
        measure_all(options, files, examples)


def measure_all(options: Options, files: Sequence[str], examples: Sequence[evaluate.Example] | None) -> None:
    """Measure each model, and print the table of all."""
    from jaxgpt.devices import compute_dtype, is_first

    results: dict[str, Mapping[str, Any]] = {}
    seen: list[tuple[str, int]] = []
    for model in options.models:
        scorer = evaluate.open_scorer(
            model,
            checkpoint=options.checkpoint,
            allow_pickle=options.allow_pickle,
            ignore_config_change=options.ignore_config_change,
            quantize=options.quantize,
            batch_size=options.batch_size,
            dtype=compute_dtype(options.dtype),
            fsdp=options.fsdp,
            tensor=options.tensor,
        )
        seen.append((scorer.tokenizer.fingerprint, scorer.config.n_positions))
        if options.task is not None and examples is not None:
            score = evaluate.measure_task(scorer, options.task, examples)
        else:
            score = measure(options, files, model, scorer)
        results[model] = score.metrics()
        if isinstance(score, evaluate.LabelScore):
            print(f"{model}: texts by label (rows) and by what they are taken for (columns):\n{score.table()}\n")
    if any("loss" in found for found in results.values()):
        note_differences(*map(set, zip(*seen, strict=True)), given=options.block_size is not None)
    print(table(results))
    if options.json is not None and is_first():
        write_json(Path(options.json), {"flags": asdict(options), "results": finite(results)})


def note_differences(tokenizers: set[str], contexts: set[int], *, given: bool) -> None:
    """Say which figures of several models can't be compared."""
    if len(tokenizers) > 1:
        note(
            "these models have different tokenizers, so loss and perplexity, which are per token, can't be compared; "
            "bits_per_byte can"
        )
    if len(contexts) > 1 and not given:
        note(
            f"these models read contexts of {', '.join(map(str, sorted(contexts)))} tokens; --block_size makes them one"
        )


def find(options: Options) -> Sequence[str]:
    """Return the files on which models are measured: those to test or to validate on, or all where none are."""
    from jaxgpt.data.tokens.token_folders import are_tokens, token_files

    if options.dataset is None or options.task is not None:
        return ()
    cache = default_cache_dir() if options.cache_dir is None else Path(options.cache_dir)
    if are_tokens(Path(options.dataset)):
        train, val, notes = token_files(Path(options.dataset))
    else:
        train, val, notes = find_parts("dataset", options.dataset, cache, test=True)
    for text in notes:
        note(text)
    return [str(file) for file in val or train]


def measure(options: Options, files: Sequence[str], model: str, scorer: evaluate.Scorer) -> Any:
    """Return a model's score, of the type that belongs to the data."""
    if options.dataset is None:
        return measure_own(options, model, scorer)
    dataset, tokenizer = options.dataset, scorer.tokenizer
    kind = kind_of(options, files, scorer) if options.kind == "auto" else options.kind
    labels = scorer.config.labels or ()
    fit: Any = {"length": options.block_size or scorer.config.n_positions, "too_long": options.too_long}
    few = partial(_first, options.limit)
    if kind in ("labels", "pairs") and (labels == VALUE or (len(labels) > 1) != (kind == "labels") or not labels):
        raise UsageError(f"--kind {kind}: {model} has the labels {', '.join(labels) or 'none'}; it is made for others")
    if kind != "text" and (options.stride is not None or options.prefix):
        raise UsageError(f"--stride, --prefix: only for texts, but {dataset} is read as {kind}")
    columns = {name: value for name in ("text_column", "label_column") if (value := getattr(options, name)) is not None}
    if columns and (kind in ("pairs", "chat") or (kind == "text" and options.label_column is not None)):
        name, value = list(columns.items())[-1]
        raise UsageError(f"--{name} {value}: of no use, as {dataset} is read as {kind}")
    if kind == "labels":
        texts = chat.name_labels(few(read(chat.read_labelled, files, **columns)), labels)
        return evaluate.measure_labels(scorer, chat.encode_labelled(texts, tokenizer, labels=labels, **fit))
    template = chat.ChatTemplate.of(tokenizer)
    if kind == "pairs":
        pairs = few(read(chat.read_pairs, files))
        return evaluate.measure_pairs(scorer, chat.encode_pairs(pairs, tokenizer, template, **fit))
    if kind == "chat":
        if template is None:
            raise UsageError(
                f"{dataset} holds conversations, but {model} has no chat template; {called('train')} sft gives one"
            )
        found = chat.encode_conversations(few(read(chat.read_conversations, files)), tokenizer, template, **fit)
        return evaluate.measure_conversations(scorer, found)
    documents = evaluate.read_documents(
        dataset, tokenizer, text_column=options.text_column, prefix=options.prefix, cache_dir=options.cache_dir
    )
    documents = islice(documents, options.limit)
    return evaluate.measure_texts(scorer, documents, context=options.block_size, stride=options.stride)


def kind_of(options: Options, files: Sequence[str], scorer: evaluate.Scorer) -> Kind:
    """Return how a data set is read where nothing is said."""
    labels = scorer.config.labels
    if labels is not None and labels != VALUE:
        return "labels" if len(labels) > 1 else "pairs"
    if is_hub(files[0]):
        columns = columns_and_size(files[0])[0]
    else:
        records = read_records(files[0], SUFFIXES) if suffix_of(files[0]) in (".jsonl", ".json", ".parquet") else ()
        columns = next((record for _, record in records), {})
    has_texts = (options.text_column or TEXT_COLUMN) in columns
    return "chat" if not has_texts and any(field in columns for field in CHAT_FIELDS) else "text"


def read(read: Callable[..., list[Any]], files: Sequence[str], **columns: str) -> list[Any]:
    """Return the examples in files; `read` is one of `jaxgpt.chat`'s functions."""
    return [record for file in files for record in read(file, **columns)]


def measure_own(options: Options, model: str, scorer: evaluate.Scorer) -> Any:
    """Return the score on the data on which a run was evaluated, by the names that the run's metrics have."""
    folder, missing = Path(model), "--dataset is missing"
    if not (folder / "checkpoints").is_dir():
        raise UsageError(f"{missing}: {model} is no run's folder, which would have data of its own")
    record = read_record(folder, ignore_change=options.ignore_config_change)
    name, flags = record.get("stage"), record.get("flags")
    if name is None or flags is None:
        raise UsageError(f"{missing}: {model} holds weights alone, of no run that would have data of its own")
    made = load_stage(name)
    flags = {**flags, "out_dir": model, "init_from": "resume", "overwrite": False, "dtype": options.dtype}
    stage: Any = made(made.Flags(**flags))
    stage.open(folder, record)
    refuse_differences(folder, record.get("data") or {}, stage.data, "; --dataset measures on other data")
    few = partial(_first, options.limit)
    if name == "ppo":
        return measure_answers(options, model, stage, scorer)
    if name == "dpo":
        pairs = few(stage.examples["val"])
        # With adapters it may be that the model without them is the reference.
        if stage.reference:
            reference = stage.reference["val"][: len(pairs)]
        else:
            size, dtype, mesh = scorer.batch_size, scorer.model.dtype, scorer.mesh
            base = evaluate.Scorer(stage.config, stage.params, stage.tokenizer, batch_size=size, dtype=dtype, mesh=mesh)
            reference = evaluate.answer_log_probs(base, pairs)
        return evaluate.measure_preferences(scorer, pairs, reference=reference, beta=stage.flags.beta)
    if name == "classify":
        return evaluate.measure_labels(scorer, few(stage.examples["val"]))
    if name == "reward":
        return evaluate.measure_pairs(scorer, few(stage.examples["val"]))
    if name == "sft":
        return evaluate.measure_conversations(scorer, few(stage.conversations["val"]))
    return evaluate.measure_windows(scorer, islice(stage.eval_batches(), options.limit))


def measure_answers(options: Options, model: str, stage: Any, scorer: evaluate.Scorer) -> evaluate.AnswerScore:
    """Return what a policy's own answers to the prompts to validate on are worth, as training evaluates them."""
    for name in ("quantize", "limit", "batch_size"):
        if (value := getattr(options, name)) is not None:
            raise UsageError(f"--{name} {value}: {model} is a run of ppo, measured by rollouts of its own flags")
    trainer = stage.trainer(scorer.mesh)
    stage.before_loop(trainer)
    return evaluate.AnswerScore(stage.evaluate(trainer, scorer.params))


def _first(limit: int | None, examples: Sequence[Any]) -> Sequence[Any]:
    return examples[:limit]
