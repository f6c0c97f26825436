"""`convert_weights.py SOURCE DEST`: pretrained weights → a run's folder, or a run's folder → weights for PyTorch."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxgpt.command_line import command, parse
from jaxgpt.commands import called
from jaxgpt.errors import RunError, UsageError
from jaxgpt.files import free_name, write_json
from jaxgpt.flags import Name, PathName, flag, flags_where
from jaxgpt.model.config import GPTConfig
from jaxgpt.notes import note
from jaxgpt.runs.manifest import Which

if TYPE_CHECKING:
    from jaxgpt.tokenizers import Tokenizer

HUB = "hub:"
DESCRIPTION = "Convert pretrained weights into a run's folder, or a run's folder into weights for PyTorch."
EXAMPLES = """examples:
  convert_weights.py gpt2 gpt2-jax --check
  convert_weights.py out for-pytorch
  convert_weights.py out hub:OWNER/NAME --private
  convert_weights.py out-sft for-peft --adapters"""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    source: PathName = flag(
        help="what to read: a model's name on the Hugging Face hub, a folder of its files, nanoGPT's ckpt.pt, a folder "
        "of PEFT's adapters, or a run's folder",
        positional=True,
    )
    dest: PathName = flag(
        help="the folder to write: a run's folder, or, where SOURCE is one, a folder for transformers, or "
        "hub:OWNER/NAME, a model on the hub",
        positional=True,
    )
    private: bool = flag(False, "of a DEST on the hub: for nobody but its owner")
    checkpoint: Which | None = flag(None, "of a run, the checkpoint of this step; none: the best")
    check: bool = flag(False, "compare what was written with PyTorch's model; exit with 1 if anything differs")
    report: PathName | None = flag(None, "also write what --check finds to a .json or .md file")
    allow_pickle: bool = flag(False, "also read pytorch_model.bin and ckpt.pt: tensors only, no code in them is run")
    ignore_config_change: bool = flag(False, "take a run's config.json as it is, although it was changed by hand")
    dtype: Literal["float32", "bfloat16", "float16"] = flag("float32", "of the weights that are written")
    overwrite: bool = flag(False, "if DEST is not empty, move what is there aside, to DEST.old-1 and so on")
    adapters: bool = flag(False, "of a run that trained adapters, write these alone, for PEFT")
    base: PathName | None = flag(None, "where SOURCE is a folder of PEFT's adapters: the model that they belong to")
    revision: Name | None = flag(None, "branch, tag or commit of a model on the hub")

    def __post_init__(self) -> None:
        if self.report is not None and not self.check:
            raise UsageError(f"--report {self.report} needs --check")
        if self.report is not None and Path(self.report).suffix not in (".json", ".md"):
            raise UsageError(f"--report {self.report}: its name must end in .json or .md")
        if self.report is not None and not Path(self.report).parent.is_dir():
            raise UsageError(f"--report {self.report}: there is no folder {Path(self.report).parent}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and check if asked to."""
    options = parse(Options, argv, prog=called("convert"), description=DESCRIPTION, examples=EXAMPLES)
    source, dest = Path(options.source), Path(options.dest)
    to_hub = options.dest.startswith(HUB)
    if to_hub and (options.adapters or options.overwrite or not (source / "checkpoints").is_dir()):
        raise UsageError(
            f"DEST {dest}: SOURCE must be a run's folder, without --adapters and --overwrite; other folders that are "
            f"for the hub are uploaded by `hf upload {options.dest.removeprefix(HUB)} DIR`"
        )
    if options.private and not to_hub:
        raise UsageError("--private: only where DEST is hub:OWNER/NAME")
    if dest.exists() and not options.overwrite and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"DEST {dest} is not an empty folder; choose another one, or --overwrite moves it aside")
    if source.exists() and source.resolve() == dest.resolve():
        raise UsageError(f"SOURCE and DEST are both {dest}")
    from_run, from_peft = (source / "checkpoints").is_dir(), (source / "adapter_config.json").exists()
    if from_peft and options.base is None:
        raise UsageError(f"--base is missing: {source} holds PEFT's adapters, and it names the model that they adapt")
    if options.base is not None and not from_peft:
        raise UsageError(f"--base {options.base}: it goes with a SOURCE that is a folder of PEFT's adapters")
    if options.checkpoint is not None and not from_run:
        raise UsageError(f"--checkpoint {options.checkpoint}: SOURCE must be a run's folder, and {source} is none")
    if options.adapters and not from_run:
        raise UsageError(f"--adapters: SOURCE must be a run's folder, and {source} is none")
    if from_peft or options.adapters:
        if options.check:
            raise UsageError("--check: not for adapters alone; check the merged model")
        move = import_adapters if from_peft else export_adapters
        move(source, dest, options)
    elif to_hub:
        publish(source, options)
    elif from_run:
        export_run(source, dest, options, title=dest.name)
    else:
        import_weights(dest, options)


def import_weights(dest: Path, options: Options) -> None:
    """Read pretrained weights and write them as a run's folder."""
    from jaxgpt.hf.convert import load_pretrained
    from jaxgpt.hf.hub import locate
    from jaxgpt.runs.weights import find_tokenizer, load_params, save_params

    path = locate(options.source, revision=options.revision, allow_pickle=options.allow_pickle)
    config, params = load_pretrained(path, dtype=options.dtype, allow_pickle=options.allow_pickle)
    tokenizer = find_tokenizer(path if path.is_dir() else path.parent, config.vocab_size)
    make_room(dest)
    save_params(dest, config, params, source=options.source)
    if tokenizer is not None:
        tokenizer.save(dest)
    print(f"{options.source} is now in {dest}")
    if options.check:
        del params  # those on disk are checked
        config, params = load_params(dest, dtype=options.dtype)
        check(path, config, params, tokenizer, options)


def publish(run: Path, options: Options) -> None:
    """Write a run's weights to the hub: what `export_run` makes of them."""
    from jaxgpt.hf.hub import make_repository, upload

    name = options.dest.removeprefix(HUB)
    make_repository(name, private=options.private)  # first, as it may be refused
    with tempfile.TemporaryDirectory() as folder:
        export_run(run, Path(folder), options, title=name)
        print(f"{run} is now at {upload(Path(folder), name)}")


def export_run(run: Path, dest: Path, options: Options, *, title: str) -> None:
    """Read a run's weights and write them as a folder for transformers, without padding of the vocabulary."""
    from jaxgpt.hf.convert import cut_padding, save_pretrained
    from jaxgpt.model.resize import without_values
    from jaxgpt.runs.manifest import step_of
    from jaxgpt.runs.weights import find_checkpoint, find_tokenizer, load_params
    from jaxgpt.stages import STAGES, load_stage
    from jaxgpt.train.card import CARD, model_card

    if options.allow_pickle or options.revision is not None:
        raise UsageError(f"--allow_pickle and --revision are for pretrained weights, but {run} is a run's folder")
    opened = load_params(run, which(options), dtype=options.dtype, ignore_config_change=options.ignore_config_change)
    config, params = without_values(*opened)
    tokenizer = find_tokenizer(run, config.vocab_size)
    if tokenizer is not None and config.vocab_size > (real := tokenizer.vocab_size):
        print(f"note: ids {real} to {config.vocab_size - 1} stand for no text; left out", file=sys.stderr)
        config, params = cut_padding(config, params, real)
    config.to_hf()  # raises, before anything is moved, if HF's model has no such architecture
    card = model_card(
        run,
        config,
        title=title,
        step=step_of(find_checkpoint(run, which(options))),
        left_out={name for stage in STAGES for name in flags_where(load_stage(stage).Flags, "about_run", True)},
        ignore_change=options.ignore_config_change,
    )
    make_room(dest)
    save_pretrained(dest, config, params, tokenizer=tokenizer)
    (dest / CARD).write_text(card, encoding="utf-8")
    if config.labels is None:
        ends = list(config.eos_token_ids)
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": ends or None, "pad_token_id": config.pad_token_id}
        write_json(dest / "generation_config.json", {name: value for name, value in ids.items() if value is not None})
    if dest == Path(options.dest):
        print(f"{run} is now in {dest}")
    if options.check:
        check(dest, config, params, tokenizer, options)


def export_adapters(run: Path, dest: Path, options: Options) -> None:
    """Write what a run trained beside its weights as a folder for PEFT."""
    from jaxgpt.hf.peft import save_adapters
    from jaxgpt.model.lora import is_beside
    from jaxgpt.model.resize import without_values
    from jaxgpt.runs.weights import BASE, load_trained
    from jaxgpt.train.state import split

    config, params, lora = load_trained(
        run, which(options), dtype=options.dtype, ignore_config_change=options.ignore_config_change
    )
    if lora is None:
        raise UsageError(f"--adapters: {run} trained no adapters")
    config.to_hf()  # raises, before anything is moved, if HF's model has no such architecture
    make_room(dest)
    config, params = without_values(config, params)
    beside, _ = split(params, is_beside)
    save_adapters(dest, config, lora, beside)
    print(f"{run}'s adapters are now in {dest}; {called('convert')} {run / BASE} makes the folder that they belong to")


def import_adapters(source: Path, dest: Path, options: Options) -> None:
    """Merge PEFT's adapters into the model that they belong to, and write that as a run's folder."""
    from jaxgpt.hf.peft import load_adapters
    from jaxgpt.model.lora import merge
    from jaxgpt.runs.weights import check_tokenizer, open_model, save_params
    from jaxgpt.train.state import join

    assert options.base is not None
    config, params, tokenizer = open_model(
        options.base, allow_pickle=options.allow_pickle, ignore_config_change=options.ignore_config_change
    )
    lora, adapters = load_adapters(source, config)
    tokenizer = adapters_tokenizer(source, tokenizer)
    check_tokenizer(source, config, tokenizer)
    make_room(dest)
    save_params(dest, config, merge(join(params, adapters), lora), source=options.source, base=options.base)
    tokenizer.save(dest)
    print(f"{options.base} with the adapters of {source} is now in {dest}")


def adapters_tokenizer(source: Path, of_base: Tokenizer) -> Tokenizer:
    """Return the tokenizer in a folder of adapters, which were trained with it, or the base model's.

    A chat template that lies there without a tokenizer goes with the base model's.
    """
    from jaxgpt.chat.template import ChatTemplate
    from jaxgpt.tokenizers.tokenizer import TOKENIZER_FILES, BPETokenizer, load_tokenizer

    if any((source / name).exists() for name in TOKENIZER_FILES):
        return load_tokenizer(source)
    template = ChatTemplate.load(source)
    if template is not None and isinstance(of_base, BPETokenizer):
        of_base.chat_template = template.source
    elif template is not None:
        note(f"{template.name} is left out: the base model's tokenizer is one of characters")
    return of_base


def which(options: Options) -> Which:
    """Return which of a run's checkpoints is asked for."""
    return "best" if options.checkpoint is None else options.checkpoint


def check(
    path: Path, config: GPTConfig, params: Mapping[str, Any], tokenizer: Tokenizer | None, options: Options
) -> None:
    """Print the verification chain's report on a model and the files it came from or went to."""
    from jaxgpt.verification.learning import verify_training
    from jaxgpt.verification.outputs import table, verify, write_report

    checks = verify(path, config, params, tokenizer=tokenizer, allow_pickle=options.allow_pickle)
    checks += verify_training(config, params)
    print(table(checks), end="")
    if options.report is not None:
        write_report(Path(options.report), checks)
    failed = [line.name for line in checks if line.result == "FAIL"]
    if failed:
        raise RunError(f"the check failed: {'; '.join(failed)}")


def make_room(dest: Path) -> None:
    """Move what DEST holds aside; nothing is ever deleted."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        aside = free_name(dest)
        dest.rename(aside)
        print(f"note: what {dest} held is now in {aside}")
