"""Metrics of a run: rows in metrics.jsonl, the same to TensorBoard and wandb, and a plot of the curve."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jaxgpt.errors import naming
from jaxgpt.files import regular, replacing

Row = dict[str, Any]
STYLES: dict[str, Any] = {"train": {"linewidth": 0.8, "alpha": 0.6}, "val": {"linewidth": 2, "marker": "o"}}
LARGEST = 3.5e38  # as of float32, which what is measured comes in
UNITS = {"loss": "loss (nats)", "kl": "KL from the reference (nats a response)"}
UNITS |= {"lr": "learning rate", "grad_norm": "norm of the gradient"}


class MetricsLog:
    """Writes rows; the file is the record, the dashboards are copies that may fail without ending a run."""

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        tensorboard: bool = False,
        wandb: str | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a run's metrics to go on from `step`: later rows, written by a process that died, are cut.

        Args:
            folder: the run's.
            step: updates done; 0 begins an empty file.
            tensorboard: also write event files into `folder`/tensorboard.
            wandb: also send rows to this wandb project.
            flags: what the run is asked, for the dashboards.
        """
        self.path = folder / "metrics.jsonl"
        rows = [row for row in read_rows(self.path) if row["step"] <= step] if step else []
        with replacing(self.path) as part:
            part.write_text("".join(_line(row) for row in rows), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._sinks: dict[str, Any] = {}
        if tensorboard:
            self._open("tensorboard", lambda: _TensorBoard(folder / "tensorboard", step))
        if wandb is not None:
            self._open("wandb", lambda: _Wandb(wandb, folder, step, flags or {}))
        if flags and not step:
            rows_of = [f"| {name} | {value} |" for name, value in flags.items()]
            self.write_text(0, "flags", "\n".join(["| flag | value |", "|---|---|", *rows_of]))

    def write(self, step: int, split: str, **values: float | int | None) -> None:
        """Add a row; what is None or not finite is null, as JSON has no NaN."""
        row = {"step": step, "split": split, **values}
        with naming(self.path):
            self._file.write(_line(row))
        self._tell(lambda sink: sink.write(row))

    def write_text(self, step: int, name: str, text: str) -> None:
        """Show a text, in Markdown, on the dashboards."""
        self._tell(lambda sink: sink.write_text(step, name, text))

    def close(self) -> None:
        """Flush and close everything."""
        with naming(self.path):
            self._file.close()
        self._tell(lambda sink: sink.close())

    def _tell(self, what: Callable[[Any], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                what(sink)
            except Exception as error:  # a dashboard's failure is not the run's
                print(f"warning: {name} failed and is off from here: {error}", file=sys.stderr)
                del self._sinks[name]

    def _open(self, name: str, make: Any) -> None:
        try:
            self._sinks[name] = make()
        except Exception as error:
            print(f"warning: {name} could not be started and is off: {error}", file=sys.stderr)


class NoMetrics:
    """The log of all processes of a run but the first, which write nothing."""

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Leave it to the first process."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Leave it to the first process."""

    def close(self) -> None:
        """Leave it to the first process."""


def read_rows(path: Path) -> list[Row]:
    """Return a metrics file's rows; lines that are none are left out, with a warning but for one that was cut off."""
    rows, others = [], []
    text = regular(path).read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if is_row(row):
            rows.append(row)
        elif line.endswith("\n"):
            others.append(number)
    if others:
        print(f"warning: {path}:{others[0]}: no row of metrics; left out, as {len(others)} in all", file=sys.stderr)
    return rows


def described(found: Mapping[str, float]) -> str:
    """Return what an evaluation found as words: of the data to validate on, where a name doesn't begin with train."""
    names = {name: name.replace("_", " ") if name.startswith("train_") else f"val {name}" for name in found}
    return ", ".join(f"{names[name]} {value:.4f}" for name, value in found.items())


def is_row(row: object) -> bool:
    """Return whether a value is what `MetricsLog.write` writes: a step, a split, and by their names numbers or null."""
    if not isinstance(row, dict) or not isinstance(row.get("split"), str) or not isinstance(row.get("step"), int):
        return False
    return all(value is None or is_number(value) for name, value in row.items() if name != "split")


def is_number(value: object) -> bool:
    """Return whether a value is a number that a plot can show, not too large and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def plot(folder: Path) -> Path:
    """Draw the curves of a run's metrics.jsonl, and return the picture's path."""
    figure = plot_training(read_rows(folder / "metrics.jsonl"), title=folder.resolve().name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the folder's name may have letters that the font lacks
        figure.savefig(folder / "curve.png", dpi=120)
    return folder / "curve.png"


def plot_training(rows: Sequence[Row], *, title: str = "") -> Any:
    """Draw losses over steps, what else a stage measures, learning rate and gradient norm, as a matplotlib figure.

    Args:
        rows: of metrics, as `read_rows` gives them.
        title: above all.
    """
    from matplotlib.figure import Figure  # slow to import, and needed once a run

    # PPO's two losses are of different things; its score and its divergence tell how it goes.
    known = [name for name in ("accuracy", "score", "kl") if any(name in row for row in rows)]
    names = known if "score" in known else ["loss", *known]
    names += [name for name in ("lr", "grad_norm") if any(row.get(name) is not None for row in rows)]
    figure = Figure(figsize=(7, 1 + 3 * len(names)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        for split, style in STYLES.items():
            points = [(row["step"], row[name]) for row in rows if row["split"] == split and row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{split}, last {points[-1][1]:.4g}", **style)
        axes.set(xlabel="step", ylabel=UNITS.get(name, name))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def _line(row: Row) -> str:
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Let a module that nobody has imported be one that is not installed."""
    known = sys.modules.setdefault(module, cast(Any, None))
    try:
        yield
    finally:
        if known is None:
            del sys.modules[module]


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        with _without("torch"):  # it is imported where it is installed, for two seconds, and nothing here needs it
            from tensorboardX import SummaryWriter

        # Hides what a process that died wrote of this step and later ones; a run at step 0 writes that one again, too.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def write(self, row: Row) -> None:
        for key, value in row.items():
            if key not in ("step", "split") and value is not None:
                self._writer.add_scalar(f"{row['split']}/{key}", value, row["step"])

    def write_text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, project: str, folder: Path, step: int, flags: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        known = folder / "wandb_id.txt"
        if step == 0 or not known.exists():
            known.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = wandb.init(
            project=project,
            id=regular(known).read_text(encoding="utf-8"),  # without which a run that goes on would be another one
            name=folder.resolve().name,
            dir=str(folder),
            resume="allow",
            config=dict(flags),
        )

    def write(self, row: Row) -> None:
        values = {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("step", "split")}
        self._run.log(values, step=row["step"])

    def write_text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: text}, step=step)

    def close(self) -> None:
        self._run.finish()
