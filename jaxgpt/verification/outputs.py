"""The verification chain: is this model, in everything that can be measured, the one that PyTorch runs?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import HEAD, TABLE, hf_tensors, open_pretrained, save_pretrained
from jaxgpt.hf.tensors import Tensor
from jaxgpt.model.atlas import count
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.tokenizers import Tokenizer

# Of logits the largest difference, in their standard deviations and absolutely: pretrained models' are large.
LOGITS_BAR, LOGITS_LIMIT, KL_BAR, LOSS_BAR = 1e-4, 1e-3, 1e-6, 1e-4
CONTEXT, PROMPT, NEW_TOKENS = 128, 8, 100
# What Hugging Face's text on decoding methods shows of gpt2, and how that model's embedding table begins.
STORY = (
    "I enjoy walking with my cute dog",
    ", but I'm not sure if I'll ever be able to walk with my dog. I'm not sure if I'll",
)
GPT2_TABLE = (-0.1101, -0.0393, 0.0331)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was compared.
        result: how it came out.
        measured: the figures.
        bar: what they had to be.
    """

    name: str
    result: Literal["pass", "FAIL", "not applicable"]
    measured: str
    bar: str


@dataclass(frozen=True)
class Answers:
    """PyTorch's results: logits of rows of tokens, their loss, and its own greedy continuation.

    Attributes:
        rows: (B, T) tokens; two random rows, and one with a prompt, its continuation and zeros.
        logits: (B, T, V).
        scores: (B, T, N), of a model with labels.
        loss: mean over the rows.
        greedy: where in the third row the continuation stands.
        parameters: how many there are.
    """

    rows: np.ndarray
    logits: np.ndarray
    scores: np.ndarray | None
    loss: float
    greedy: slice
    parameters: int


def verify(
    path: Path,
    config: GPTConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    allow_pickle: bool = False,
) -> list[Check]:
    """Compare a model with the files that it was read from or written to, and with what PyTorch makes of them.

    Args:
        path: an HF folder, or a checkpoint of nanoGPT.
        config, params: the model. PyTorch gets the files' weights rounded to the dtype of these.
        tokenizer: for the published continuation, where the model is OpenAI's gpt2.
        allow_pickle: as in `load_pretrained`.

    Raises:
        UsageError: PyTorch or transformers is not installed, or the files can't be read.
    """
    _, tensors = open_pretrained(path, allow_pickle=allow_pickle)
    exported = hf_tensors(config, params)
    with tempfile.TemporaryDirectory() as folder:
        unknown = any("_orig_mod." in t.name or t.file.suffix == ".msgpack" for t in tensors.values())
        if unknown or not (path / "config.json").exists():
            # transformers can't read these files; it gets what is made of them here.
            save_pretrained(folder, config, params)
            path = Path(folder)
        answers = ask_pytorch(path, config, dtype=str(exported[TABLE].dtype))
    logits = _logits(config, params, answers.rows)
    return [
        *check_tensors(config, tensors, exported, answers),
        *check_outputs(logits, answers),
        *check_scores(config, params, answers),
        check_story(config, params, tokenizer),
    ]


def check_tensors(
    config: GPTConfig, tensors: Mapping[str, Tensor], exported: Mapping[str, np.ndarray], answers: Answers
) -> list[Check]:
    """Compare the files' tensors with those that an export of the parameters has."""
    left = tensors.keys() ^ exported.keys()
    # HF's layers always have biases, and a tied head may stand in a file beside the table it equals.
    explained = {name for name in left if name == HEAD or not config.bias and name.endswith(".bias")}
    counts = [sum(tensor.size for tensor in exported.values()), count(replace(config, bias=True))["total"]]
    changed = [
        name
        for name in sorted(tensors.keys() & exported.keys())
        if tensors[name].read().astype(exported[name].dtype).tobytes() != exported[name].tobytes()
    ]
    return [
        check(
            "every tensor mapped once, none left over",
            not left - explained,
            f"{len(tensors)} in the files, {len(exported)} exported",
            "no name on one side only",
        ),
        check(
            "parameters",
            {*counts, answers.parameters} == {counts[0]},
            f"{counts[0]:,}; PyTorch {answers.parameters:,}; atlas {counts[1]:,}",
            "equal",
        ),
        check(
            "round trip",
            not changed,
            f"changed: {', '.join(changed[:5])}" if changed else f"{len(exported)} tensors equal",
            "bit for bit",
        ),
    ]


def check_outputs(logits: np.ndarray, answers: Answers) -> list[Check]:
    """Compare logits with PyTorch's, and what follows from them."""
    ours, theirs = _log_softmax(logits), _log_softmax(answers.logits)
    kl = np.mean(np.sum(np.exp(theirs) * (theirs - ours), axis=-1))
    loss = -np.mean(np.take_along_axis(ours[:, :-1], answers.rows[:, 1:, None], axis=-1))
    # Our choice at each position of PyTorch's continuation: equal, or a tie as far as f32 can tell.
    span = answers.greedy
    chosen, before = answers.rows[2, span], logits[2, span.start - 1 : span.stop - 1]
    equal = int(np.sum(before.argmax(-1) == chosen))
    behind = np.max(before.max(-1) - np.take_along_axis(before, chosen[:, None], axis=-1)[:, 0])
    return [
        _close("logits against PyTorch", logits, answers.logits),
        check("KL divergence from PyTorch", kl <= KL_BAR, f"mean {kl:.2e}", f"at most {KL_BAR:g}"),
        check(
            "loss against PyTorch",
            abs(loss - answers.loss) <= LOSS_BAR,
            f"{loss:.6f}; PyTorch {answers.loss:.6f}",
            f"within {LOSS_BAR:g}",
        ),
        check(
            "greedy continuation by PyTorch",
            behind <= _bar(answers.logits),
            f"{equal} of {len(chosen)} ids equal",
            "all, but for ties within the logits' bar",
        ),
    ]


def check_scores(config: GPTConfig, params: Mapping[str, Any], answers: Answers) -> list[Check]:
    """Compare the scores of a model with labels with PyTorch's."""
    if answers.scores is None:
        return []
    scores = nn.apply(lambda model, rows: model.scores(model.hidden(rows)[0]), GPT(config))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(scores)({"params": params}, answers.rows.astype(np.int32))
    return [_close("scores against PyTorch", np.asarray(ours), answers.scores)]


def check_story(config: GPTConfig, params: Mapping[str, Any], tokenizer: Tokenizer | None) -> Check:
    """Compare with the published continuation, if this is OpenAI's gpt2."""
    name, bar = "greedy continuation as published", "every id equal"
    table = params["wte"]["embedding"]
    if table.shape != (50257, 768) or not np.allclose(table[0, :3], GPT2_TABLE, atol=1e-4):
        return Check(name, "not applicable", "the model is not OpenAI's gpt2", bar)
    if tokenizer is None:
        return Check(name, "not applicable", "there is no tokenizer", bar)
    start, ids = len(tokenizer.encode(STORY[0])), tokenizer.encode("".join(STORY))
    chosen = _logits(config, params, np.array([ids]))[0, start - 1 : -1].argmax(-1)
    equal = int(np.sum(chosen == ids[start:]))
    return check(name, equal == len(chosen), f"{equal} of {len(chosen)} ids equal", bar)


def import_pytorch() -> tuple[Any, Any]:
    """Return the modules torch and transformers, the latter without warnings and progress bars.

    Raises:
        UsageError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(
            f"--check compares with PyTorch: {error.name} is missing (pip install torch transformers)"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def ask_pytorch(folder: Path, config: GPTConfig, *, dtype: str) -> Answers:
    """Run transformers' model of a folder, in f32 on weights rounded to `dtype`."""
    torch, transformers = import_pytorch()
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "eager", "local_files_only": True}
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, **options).float().eval()
    context = min(CONTEXT, config.n_positions)
    prompt = min(PROMPT, context // 2)
    greedy = slice(prompt, min(prompt + NEW_TOKENS, context))
    rows = np.random.default_rng(0).integers(config.vocab_size, size=(3, context))
    rows[2, prompt:] = 0
    with torch.inference_mode():
        step, cache = torch.from_numpy(rows[2:, :prompt]), None
        for position in range(greedy.start, greedy.stop):
            output = model(step, past_key_values=cache, use_cache=True)
            step, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            rows[2, position] = step.item()
        output = model(torch.from_numpy(rows), labels=torch.from_numpy(rows))
        scores, parameters = None, model.num_parameters()
        if config.labels is not None:
            scorer = transformers.GPT2ForSequenceClassification.from_pretrained(folder, **options).float().eval()
            # At every token: which one the whole model would choose depends on the padding.
            scores = scorer.score(scorer.transformer(torch.from_numpy(rows)).last_hidden_state).numpy()
            parameters += scorer.score.weight.numel()
    return Answers(rows, output.logits.numpy(), scores, output.loss.item(), greedy, parameters)


def table(checks: Sequence[Check]) -> str:
    """Return the report as a table in Markdown."""
    rows = [("check", "result", "measured", "bar"), *((c.name, c.result, c.measured, c.bar) for c in checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def write_report(file: Path, checks: Sequence[Check]) -> None:
    """Write the report, as JSON if the file's name ends so, otherwise in Markdown."""
    as_json = json.dumps({"checks": [asdict(check) for check in checks]}, indent=2) + "\n"
    file.write_text(as_json if file.suffix == ".json" else table(checks), encoding="utf-8")


def _close(name: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    difference = np.abs(ours - theirs).max()
    return check(
        name,
        difference <= _bar(theirs),
        f"largest difference {difference:.2e}, their standard deviation {theirs.std():.3g}",
        f"at most {LOGITS_BAR:g} standard deviations, and {LOGITS_LIMIT:g}",
    )


def _bar(logits: np.ndarray) -> float:
    return min(LOGITS_BAR * float(logits.std()), LOGITS_LIMIT)


def check(name: str, passed: Any, measured: str, bar: str) -> Check:
    return Check(name, "pass" if passed else "FAIL", measured, bar)


def _logits(config: GPTConfig, params: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(GPT(config).apply)({"params": params}, rows.astype(np.int32))[0])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
