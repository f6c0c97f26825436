"""The two ways in which a command ends early, each one clear line for the user and never a traceback.

Anything else that reaches the terminal as a traceback is a bug of this package.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

ELSEWHERE = {
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "dataset_name": ("dataset",),
    "eval_steps": ("eval_interval",),
    "gradient_checkpointing": ("remat",),
    "length": ("max_new_tokens",),
    "logging_steps": ("log_interval",),
    "lora_r": ("lora_rank",),
    "loss_type": ("loss",),
    "lr": ("learning_rate",),
    "max_completion_length": ("max_new_tokens",),
    "max_grad_norm": ("grad_clip",),
    "max_length": ("block_size",),
    "max_seq_length": ("block_size",),
    "max_steps": ("max_iters",),
    "column": ("text_column",),
    "max_tokens": ("max_new_tokens",),
    "model_name_or_path": ("base", "init_from"),
    "num_return_sequences": ("num_samples",),
    "output_dir": ("out_dir",),
    "overwrite_output_dir": ("overwrite",),
    "per_device_train_batch_size": ("batch_size",),
    "prompt": ("start",),
    "response_length": ("max_new_tokens",),
    "save_steps": ("save_interval",),
    "save_total_limit": ("keep",),
    "torch_dtype": ("dtype",),
    "train_file": ("dataset",),
    "validation_file": ("val_dataset",),
    "warmup_steps": ("warmup_iters",),
}
"""What other tools call our flags, which command lines may too; of several, the first that the command knows."""
ALIKE = {
    "data": ("dataset",),
    "epochs": ("max_iters",),
    "hidden_size": ("n_embd",),
    "max_length": ("max_new_tokens",),
    "model": ("init_from",),
    "n_ctx": ("block_size",),
    "num_attention_heads": ("n_head",),
    "num_hidden_layers": ("n_layer",),
    "num_layers": ("n_layer",),
    "num_train_epochs": ("max_iters",),
    "output": ("out_dir",),
    "seq_len": ("block_size",),
    "steps": ("max_iters",),
    "warmup_ratio": ("warmup_iters",),
}
"""What others call something that ours are near to, without meaning the same: these are suggested."""

MESSAGE_LIMIT, NAME_LIMIT = 2000, 100


class UsageError(ValueError):
    """Bad input: a flag, file or argument. The message names it, its value, and what would be valid.

    The scripts print the message and exit with code 2. It may show what stands in others' files: one line is made of
    it, of bounded length, and without what would command a terminal.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > MESSAGE_LIMIT:
            message = f"{message[: MESSAGE_LIMIT // 2]} … {message[-MESSAGE_LIMIT // 2 :]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class RunError(RuntimeError):
    """A run that failed through no fault of its arguments (disk full, repeated NaN). Exit code 1."""


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Give an OSError that names no file this one's name: writing to a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def out_of_memory(error: Exception) -> str | None:
    """Return what an error, of the host's or of JAX, says of memory that ran out; None where it says nothing of it."""
    reason = (str(error).splitlines() or ["no more is given"])[0]
    if isinstance(error, MemoryError):
        return f"out of memory: {reason}"
    # The second is what XLA says where it is met in a computation under way.
    ran_out = any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory"))
    return f"out of device memory: {reason}" if ran_out else None


def report(error: BaseException) -> int | None:
    """Print the line that a user gets for an error, and return the exit code; None, and nothing, for a bug of ours."""
    match error:
        case UsageError() | RunError():
            line = str(error)
        case RuntimeError() | MemoryError() if reason := out_of_memory(error):  # the former is JAX's, not imported here
            line = f"{reason}; ask for less, or for more devices"
        case OSError():  # a full disk, say, wherever it was met
            line = f"{error.filename or 'a file'}: {error.strerror or error}"
        case _:
            return None
    print(f"error: {line}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, UsageError) else 1


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return `"; did you mean 'x'?"` for the nearest of the `valid` names, or an empty string.

    What another tool calls so comes first. The cutoff lets a typo pass and a name that only looks alike not.
    """
    valid = list(valid)
    called = [ours for ours in (*ELSEWHERE.get(name, ()), *ALIKE.get(name, ())) if ours in valid]
    nearest = called or difflib.get_close_matches(name[:NAME_LIMIT], valid, n=1, cutoff=0.7)
    return f"; did you mean {prefix + nearest[0]!r}?" if nearest else ""


def listed(what: str, names: Set[str]) -> list[str]:
    """Return a list with one problem that these names have, or with none if there are no names."""
    shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{what}: {shown}"] if names else []
