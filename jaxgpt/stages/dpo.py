"""Direct preference optimisation: pairs of answers, and how likely the model found them before → a policy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxgpt import chat, model, objectives, train
from jaxgpt.devices import is_first
from jaxgpt.errors import UsageError
from jaxgpt.flags import PathName, Positive, Rate, flag
from jaxgpt.objectives.dpo_config import DPOConfig
from jaxgpt.progress import bar
from jaxgpt.stages.base import Record, show_curve
from jaxgpt.stages.finetune import SHOWN_PROMPTS, FineTuneConfig
from jaxgpt.stages.pairs import PAIR_FILE, FromPairs
from jaxgpt.train.config import SampleConfig

REFERENCE = "reference.npz"


@dataclass(frozen=True)
class DPOStageConfig(DPOConfig, SampleConfig, FineTuneConfig):
    """Learning from pairs of answers without a reward model (Rafailov et al. 2023)."""

    out_dir: PathName = flag("out-dpo", "the run's folder", on_resume="of the command", per_host=True)
    dataset: PathName | None = flag(None, PAIR_FILE, per_host=True)
    dropout: Rate | None = flag(0.0, "all three dropout rates; none: the model's own, but 0 of attention weights")
    learning_rate: Positive = flag(5e-6, "peak learning rate, reached after warmup")
    reference: Literal["precomputed", "live"] = flag(
        "precomputed",
        "log-probabilities of the reference: computed once, or, with adapters, in every step",
        on_resume="fixed",
        group="objective",
    )

    def __post_init__(self) -> None:
        DPOConfig.__post_init__(self)
        FineTuneConfig.__post_init__(self)
        if self.eval_only and self.reference == "precomputed" and self.init_from != "resume":
            raise UsageError("--eval_only: of a new run only with --reference live, as nothing is written")
        if self.reference == "live" and self.lora is None:
            raise UsageError("--reference live: only with --lora_rank, where the reference is the model without it")


class DPO(FromPairs[DPOStageConfig]):
    """The chosen answer more likely than the rejected one, near the model that the run begins with."""

    name = "dpo"
    Flags = DPOStageConfig

    def open(self, folder: Path, record: Record | None) -> None:
        self.folder = folder
        self.open_base(folder, record)
        self.remove_labels()
        self.open_pairs()

    def make_objective(self, model: Any) -> objectives.Objective:
        flags = self.flags
        return objectives.dpo(
            model,
            loss=flags.loss,
            beta=flags.beta,
            label_smoothing=flags.label_smoothing,
            length_normalised=flags.length_normalised,
        )

    def objective(self) -> objectives.Objective:
        found = super().objective()
        if self.flags.reference == "precomputed":
            return found
        # Outside of what merges the adapters, which the reference goes without.
        return objectives.with_reference(found, self.build_model(), model.without_adapters)

    def lay_out(self, part: str, rows: Any) -> chat.Pairs:
        batch = super().lay_out(part, rows)
        return replace(batch, reference=self.reference[part][rows]) if self.reference else batch

    @cached_property
    def reference(self) -> dict[str, Any]:
        """The log-probabilities of each pair's answers under the model that the run begins with."""
        if self.flags.reference == "live":
            return {}
        sizes = {part: len(pairs) for part, pairs in self.examples.items()}
        if self.flags.dry_run:  # only shapes matter, and there is no run's folder
            return objectives.no_reference(sizes)
        return objectives.read_reference(self.folder / REFERENCE, sizes, self._fingerprint)

    @property
    def _fingerprint(self) -> str:
        """A hash of the pairs' tokens."""
        return hashlib.sha256(repr(self.examples).encode()).hexdigest()

    def write_files(self, folder: Path, trainer: train.Trainer) -> None:
        super().write_files(folder, trainer)
        if self.flags.reference == "live":
            return
        from jaxgpt.hosts import together

        own = trainer.own_rows(self.config)
        params, found = own.place(self.params), {}
        for part, pairs in self.examples.items():
            rows_of = list(self.rows_in_order(part, **trainer.shard))
            shown = bar("reference log-probabilities", rows_of, unit="batches")
            batches = (trainer.put(super(DPO, self).lay_out(part, rows)) for rows in shown)
            found[part] = objectives.reference_log_probs(self.build_model(), params, batches, own.each)[: len(pairs)]
        with together():
            if is_first():
                objectives.write_reference(folder / REFERENCE, found, self._fingerprint)

    @property
    def shown_prompts(self) -> list[tuple[int, ...]]:
        begun = (pair.chosen.ids[: pair.chosen.weights.index(1)] for pair in self.examples["val"])
        return list(dict.fromkeys(begun))[:SHOWN_PROMPTS]

    def show(self, folder: Path, params: Any) -> None:
        """Print some answers."""
        self.show_answers(folder, params)
        show_curve(folder, self.next_answers(folder))
