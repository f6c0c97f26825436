"""What a run of pretraining is asked: its data, its model and how it is shown, beside the flags of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxgpt.errors import UsageError
from jaxgpt.flags import CountOrZero, Name, PathName, Positive, Share, Whole, flag
from jaxgpt.model.config import LIMITS
from jaxgpt.plan.targets import read_target
from jaxgpt.train.config import RunConfig, SampleConfig

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

    dataset: PathName | tuple[PathName, ...] = flag(
        "plays",
        "a file or folder of text, records (parquet, jsonl, csv …) or .bin tokens; "
        "hub:OWNER/NAME[/CONFIG][:SPLIT]; or a name: plays, shakespeare, wikitext2, wikitext103, openwebtext, fineweb; "
        "several are mixed",
        per_host=True,
        group="data",
    )
    dataset_weights: tuple[Positive, ...] | None = flag(
        None,
        "of several datasets, the share of rows that each has, of any sum, as 0.7 0.3; none: as many as its tokens",
        group="data",
    )
    shuffle: bool = flag(
        False,
        "visit every window of the data once an epoch, in a new order each time; false: windows from anywhere, with "
        "replacement, as nanoGPT does",
        on_resume="fixed",
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
        None,
        "where token files and downloads are kept; none: ~/.cache/jaxgpt",
        per_host=True,
        group="data",
        about_run=True,
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
    sample_tokens: CountOrZero = flag(300, "tokens of a sample", group="logging", about_run=True)
    plan: Name | None = flag(
        None,
        "devices, as v5e:4x4, h100:8 or h100:2x8: print what the run would take there, its best mesh and time, and end",
        on_resume="of the command",
        about_run=True,
    )
    price: Positive | None = flag(
        None, "with --plan, of all these devices for an hour", on_resume="of the command", about_run=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dataset, str):
            several = tuple(self.dataset)
            if not several:
                raise UsageError("dataset is empty; it must be a data set, or several")
            object.__setattr__(self, "dataset", several[0] if len(several) == 1 else several)
        weights, count = self.dataset_weights, len(self.datasets)
        if weights is not None and (count == 1 or len(weights) != count):
            given = f"--dataset_weights {' '.join(map(str, weights))}: {len(weights)} for {count} datasets"
            raise UsageError(f"{given}; there must be one for each of several")
        if self.plan is not None:
            read_target(self.plan)
        elif self.price is not None:
            raise UsageError(f"--price {self.price}: only with --plan")
        if self.bpe_vocab_size is not None and self.tokenizer != "bpe":
            raise UsageError(f"--bpe_vocab_size {self.bpe_vocab_size}: only with --tokenizer bpe")
        if self.val_dataset is not None and self.val_fraction is not None:
            raise UsageError(f"--val_fraction {self.val_fraction}: not with --val_dataset, which is to validate on")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that are asked for."""
        return (self.dataset,) if isinstance(self.dataset, str) else self.dataset

    @property
    def bpe_size(self) -> int:
        """Tokens of a trained BPE."""
        return self.bpe_vocab_size or BPE_VOCAB_SIZE
