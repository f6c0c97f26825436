"""`jaxgpt-explore`: a page that shows a model at work on a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from jaxgpt.command_line import command, parse
from jaxgpt.commands import called
from jaxgpt.errors import UsageError, naming
from jaxgpt.flags import Device, PathName, flag
from jaxgpt.runs.manifest import Which

DESCRIPTION = "Write a page that shows a model at work on a text: one file, without a server or a network."
TEXT = "The king is dead. Long live the king!"


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    model: PathName = flag(
        help="a run's folder, one of pretrained weights, or a name on the Hugging Face hub", positional=True
    )
    text: str = flag(TEXT, "what the model reads: at least two tokens, and not more than its context")
    compare: PathName | None = flag(None, "another model with the same tokenizer, whose predictions stand beside")
    scaling: PathName | None = flag(None, "a file of python -m recipes.scaling, among whose runs view 9 shows this one")
    out: PathName = flag("page.html", "the file to write")
    checkpoint: Which | None = flag(None, "of a run, the checkpoint of this step; none: the best")
    allow_pickle: bool = flag(False, "also read pytorch_model.bin and ckpt.pt: tensors only, no code in them is run")
    ignore_config_change: bool = flag(False, "take a run's config.json as it is, although it was changed by hand")
    device: Device = flag("auto", "where to run")

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("--text is empty; it must be a text for the model to read")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    options = parse(Options, argv, prog=called("explore"), description=DESCRIPTION)
    out = Path(options.out)
    try:
        with open(out, "ab") if out.exists() else TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = f"can't be written: {error.strerror}"
        raise UsageError(f"--out {out}: {reason}; it must be a file in a folder that is there") from None
    # Only now what waits for JAX.
    from jaxgpt.devices import start_devices
    from jaxgpt.explore.page import explore
    from jaxgpt.explore.training import read_ladder
    from jaxgpt.runs.weights import open_model

    ladder = [] if options.scaling is None else read_ladder(Path(options.scaling))
    start_devices(options.device)
    how = {"allow_pickle": options.allow_pickle, "ignore_config_change": options.ignore_config_change}
    model = open_model(options.model, checkpoint=options.checkpoint, **how)
    other = None if options.compare is None else open_model(options.compare, **how)
    run = Path(options.model) if (Path(options.model) / "checkpoints").is_dir() else None
    page = explore(
        *model,
        options.text,
        name=options.model,
        run=run,
        checkpoint="best" if options.checkpoint is None else options.checkpoint,
        other=other,
        other_name=options.compare or "",
        ladder=ladder,
    )
    with naming(out):
        out.write_text(page, encoding="utf-8")
    print(f"{out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")
