"""The config of low-rank adapters; nothing here imports JAX, so that flags are checked before it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.flags import Rate, Real, Rows, check_ranges
from jaxgpt.model.atlas import ROWS, axes

ADAPTABLE = {
    row.path.replace("h_{i}/", "").replace("/kernel", "").replace("/", "."): row
    for row in ROWS
    if row.path.startswith("h_{i}/") and len(axes(row.pattern)) == 2
}
"""Rows of the matrices inside layers, by HF's names of their modules: "attn.c_attn" and so on."""

TARGETS = tuple(dict.fromkeys(name for module in ADAPTABLE for name in (module, module.partition(".")[2])))
"""Names that adapters may ask for: as in PEFT, modules' names or what these end with; "c_proj" names two."""

ALPHA_LIMIT = 2**20
Alpha = Annotated[float, Real(lambda x: 0 < x <= ALPHA_LIMIT, f"a number above 0 and up to {ALPHA_LIMIT}")]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): beside a frozen matrix W, a trained alpha/rank · A B.

    Attributes:
        rank: R, the width between A (fan_in, R) and B (R, fan_out).
        alpha: the adapters' weight; it stays the same when the rank changes.
        dropout: rate at which input features of the adapters are dropped in training.
        targets: which matrices of every layer, by names in `TARGETS`.

    Raises:
        UsageError: a value out of range; the message names the field, the value and what is valid.
    """

    rank: Rows = 8
    alpha: Alpha = 16.0
    dropout: Rate = 0.0
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.targets:
            raise UsageError(f"LoRA has no targets; valid are {', '.join(TARGETS)}")
        for name in self.targets:
            if name not in TARGETS:
                hint = did_you_mean(name, TARGETS)
                raise UsageError(f"LoRA's target {name!r} is no matrix; valid are {', '.join(TARGETS)}{hint}")

    @property
    def scale(self) -> float:
        """The factor on A B."""
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """The targets as keys of `ADAPTABLE`, in its order."""
        return tuple(module for module in ADAPTABLE if any(ends_with(module, name) for name in self.targets))


def ends_with(module: str, name: str) -> bool:
    """Return whether PEFT takes `name` for this module: it is the last of its dotted parts, or all of them."""
    return f".{module}".endswith(f".{name}")
