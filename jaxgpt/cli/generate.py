"""`generate.py`: a model's continuations of a prompt, printed as they are chosen."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxgpt import checks
from jaxgpt.cli.dialects import translate
from jaxgpt.cli.processes import started
from jaxgpt.cli.speed import Steps, TimedStream
from jaxgpt.command_line import command, parse
from jaxgpt.commands import called
from jaxgpt.decode.sampling_config import DEFAULT_COUNT, Overflow, Sampling, Truncate
from jaxgpt.errors import UsageError
from jaxgpt.files import regular
from jaxgpt.flags import ComputeType, Count, CountOrZero, Device, PathName, Quantize, Rows, Seed, check_ranges, flag
from jaxgpt.model.config import GPTConfig
from jaxgpt.notes import note
from jaxgpt.runs.manifest import Which
from jaxgpt.visible import visible

if TYPE_CHECKING:
    from jaxgpt.chat.records import Message
    from jaxgpt.chat.template import ChatTemplate
    from jaxgpt.decode.text import TextStream
    from jaxgpt.tokenizers import Tokenizer

DESCRIPTION = "Continue a prompt with a trained or pretrained model."
EXAMPLES = """examples:
  generate.py --init_from out --start "ROMEO:" --overflow slide --max_new_tokens 500
  generate.py --init_from gpt2 --start FILE:prompt.txt --num_samples 3 --temperature 0
  generate.py --compare out-sft out-dpo --prompts prompts.jsonl"""
SEPARATOR = "---------------"


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    init_from: PathName = flag(
        "out", "a run's folder, one of pretrained weights, or a name on the Hugging Face hub", per_host=True
    )
    checkpoint: Which | None = flag(None, "of a run, the checkpoint of this step; none: the best")
    start: str = flag(
        "\n",
        "the prompt: text, FILE:PATH for a file's, or - for standard input; without it a terminal is asked: for the "
        "messages of a chat if the model has a chat template, else for lines to continue",
        group="prompt",
    )
    system: str | None = flag(None, "the system's message of a chat, or before a prompt to answer", group="prompt")
    allow_special: bool = flag(
        False,
        "read special tokens that the prompt spells, such as <|endoftext|>, as such; else they are plain text",
        group="prompt",
    )
    num_samples: Rows = flag(1, "continuations of the prompt", group="sampling")
    max_new_tokens: CountOrZero | None = flag(
        None, f"tokens of a sample; none: {DEFAULT_COUNT}, or as many as fit", group="sampling"
    )
    temperature: float = flag(
        0.8, "below 1 more predictable, above 1 less; 0: always the likeliest token", group="sampling"
    )
    top_k: Count | None = flag(200, "choose among the k likeliest tokens", group="sampling")
    top_p: float | None = flag(
        None, "choose among the likeliest tokens with this much probability together", group="sampling"
    )
    min_p: float | None = flag(
        None, "choose among tokens at least this fraction as likely as the likeliest", group="sampling"
    )
    repetition_penalty: float | None = flag(
        None, "above 1 makes tokens that the text already has less likely", group="sampling"
    )
    stop: tuple[str, ...] | None = flag(None, "texts before the first of which a sample ends", group="sampling")
    seed: Seed = flag(1337, "of the samples", group="sampling")
    overflow: Overflow = flag(
        "error", "beyond the model's context: an error, or slide: go on from its last half", group="sampling"
    )
    truncate: Truncate = flag("none", "left: of a prompt that is too long, keep the end", group="prompt")
    dtype: ComputeType = flag("auto", "of activations; auto: bfloat16 on GPU and TPU", group="precision and devices")
    quantize: Quantize | None = flag(
        None,
        "bits of weights; fewer need less memory; on a CPU int8 is faster than none, int4 slower; w8a8 rounds each "
        "layer's input to 8 bits, too: faster still with several rows",
        group="precision and devices",
    )
    fsdp: Rows = flag(1, "devices that share one copy of the weights", group="precision and devices")
    tensor: Rows = flag(1, "devices that share each layer's heads", group="precision and devices")
    device: Device = flag("auto", "where to run", per_host=True, group="precision and devices")
    distributed: bool = flag(
        False, "one of several processes with one model: join the others", group="precision and devices"
    )
    allow_pickle: bool = flag(False, "also read pytorch_model.bin and ckpt.pt: tensors only, no code in them is run")
    ignore_config_change: bool = flag(False, "take a run's config.json as it is, although it was changed by hand")
    chat: Literal["auto", "on", "off"] = flag(
        "auto",
        "on: the prompt is a message to answer, laid out by the model's chat template; auto: if it has one",
        group="prompt",
    )
    compare: tuple[PathName, ...] | None = flag(
        None, "models whose answers to --prompts are printed side by side", group="prompt"
    )
    prompts: PathName | None = flag(
        None, "with --compare, a file of prompts: .jsonl or .json, or .txt with one a line", group="prompt"
    )
    draft: PathName | None = flag(
        None,
        "guess tokens ahead, to read several in a pass: ngram (what followed these tokens before), or a model",
        group="sampling",
    )
    draft_tokens: Rows | None = flag(None, "how many to guess at a time; none: what suits the draft", group="sampling")
    verbose: bool = flag(False, "report tokens per second on standard error; compiles before it counts")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.stop is not None:
            checks.texts("stop", self.stop)
        if self.quantize is not None and self.fsdp * self.tensor > 1:
            raise UsageError(f"--quantize {self.quantize}: not with --fsdp or --tensor, which share weights out")
        if self.draft_tokens is not None and self.draft is None:
            raise UsageError(f"--draft_tokens {self.draft_tokens}: only with --draft")
        if (self.compare is None) != (self.prompts is None):
            raise UsageError("--compare RUN_A RUN_B and --prompts FILE go together")
        if self.compare is not None:
            for name in ("init_from", "start", "system", "num_samples", "stop", "draft", "verbose"):
                if (value := getattr(self, name)) != getattr(Options, name):
                    raise UsageError(f"--{name} {value}: not with --compare")
        _ = self.sampling  # checks what it takes

    @property
    def sampling(self) -> Sampling:
        """The flags that decide how a token is chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print samples."""
    words = translate(sys.argv[1:] if argv is None else argv, Options)
    options = parse(Options, words, prog=called("generate"), description=DESCRIPTION, examples=EXAMPLES)
    if options.compare is not None:
        from jaxgpt.cli.compare import compare

        compare(options)
        return
    asked = options.start == Options.start and all(s is not None and s.isatty() for s in (sys.stdin, sys.stdout))
    prompt = read_prompt(options.start)
    if asked and options.distributed:
        raise UsageError("--distributed: a terminal speaks to one process; say with --start what to continue")
    with started(options, prompt=prompt):
        speak(options, prompt, asked=asked)


def speak(options: Options, prompt: str, *, asked: bool) -> None:
    """Open the model, and let it continue the prompt, or what a terminal is asked for."""
    config, params, tokenizer = open_quantized(options, options.init_from)
    template = chat_template(options, tokenizer, options.init_from)
    if options.system and template is None:
        raise UsageError(f"--system {options.system}: {options.init_from} is given no messages, as --chat says")
    model = Opened(config, params, tokenizer, template, open_draft(options, tokenizer))
    if asked:
        from jaxgpt.cli.terminal import Terminal

        Terminal(options, model).converse()
    else:
        respond(options, model, prompt)


@dataclass(frozen=True)
class Opened:
    """A model, how it is asked, and what guesses its tokens."""

    config: GPTConfig
    params: Any
    tokenizer: Tokenizer
    template: ChatTemplate | None
    draft: Any


def respond(options: Options, model: Opened, prompt: str, watched: Callable[[Steps], Steps] = iter) -> None:
    """Print samples of a model; `watched` may end their steps early."""
    from jaxgpt.decode.engine import stream
    from jaxgpt.decode.text import TextStream

    config, params, tokenizer, template = model.config, model.params, model.tokenizer, model.template
    ids = prompt_ids(tokenizer, template, prompt, options.allow_special, options.system)
    ids, count = fit(options, ids or line_end(config, tokenizer), config.n_positions)
    begin = partial(
        stream,
        config,
        params,
        [ids] * options.num_samples,
        max_new_tokens=count,
        draft=model.draft,
        **how(options, tokenizer),
    )
    timed = TimedStream(begin, draft=options.draft is not None) if options.verbose else None
    texts = [
        TextStream(tokenizer, options.stop or (), config.eos_token_ids, after=ids) for _ in range(options.num_samples)
    ]
    # An answer is printed alone, a continuation with what it continues.
    print_samples(prompt if template is None else "", texts, watched(iter(timed or begin())))
    if timed is not None and count > 0:
        print(timed.report(len(ids) * options.num_samples), file=sys.stderr)
    if options.max_new_tokens is None and count < DEFAULT_COUNT and not all(text.ended for text in texts):
        print(f"note: the context of {config.n_positions} is full; --overflow slide goes on", file=sys.stderr)


def how(options: Options, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the arguments of `stream` and `generate_many` that say how to continue, whatever it is."""
    from jaxgpt.devices import compute_dtype

    return {
        **dataclasses.asdict(dataclasses.replace(options.sampling, vocab_size=tokenizer.vocab_size)),
        "seed": options.seed,
        "dtype": compute_dtype(options.dtype),
        "overflow": options.overflow,
    }


def open_quantized(options: Options, source: str) -> tuple[GPTConfig, Any, Tokenizer]:
    """Open a model by path or name, with weights of as many bits as `--quantize` says, on the devices that share it."""
    from jaxgpt.devices import in_host_memory
    from jaxgpt.model.quantized import quantize
    from jaxgpt.runs.weights import open_model

    with in_host_memory(shared=options.fsdp * options.tensor > 1):
        config, params, tokenizer = open_model(
            source,
            checkpoint=options.checkpoint,
            allow_pickle=options.allow_pickle,
            ignore_config_change=options.ignore_config_change,
        )
    params = params if options.quantize is None else quantize(params, options.quantize)
    return config, shared(options, config, params), tokenizer


def shared(options: Options, config: GPTConfig, params: Any) -> Any:
    """Return a model's parameters on the devices that share them; without `--fsdp` and `--tensor` on one."""
    from jaxgpt.mesh import check_heads, make_mesh, parameter_shardings, place
    from jaxgpt.model.atlas import parameters

    if options.fsdp * options.tensor == 1:
        return params
    mesh = make_mesh(fsdp=options.fsdp, tensor=options.tensor)
    check_heads(mesh, config)
    return place(params, parameter_shardings(mesh, parameters(config)))


def open_draft(options: Options, tokenizer: Tokenizer) -> Any:
    """Return the `Draft` that guesses tokens ahead, or None."""
    from jaxgpt.decode.draft import DraftModel, PromptLookup
    from jaxgpt.runs.weights import open_model

    if options.draft is None:
        return None
    tokens = {} if options.draft_tokens is None else {"tokens": options.draft_tokens}
    if options.draft == "ngram":
        return PromptLookup(**tokens)
    config, params, its = open_model(
        options.draft, allow_pickle=options.allow_pickle, ignore_config_change=options.ignore_config_change
    )
    if its.fingerprint != tokenizer.fingerprint:
        raise UsageError(f"--draft {options.draft}: its tokenizer is another than that of {options.init_from}")
    return DraftModel(config, shared(options, config, params), **tokens)


def read_prompt(start: str) -> str:
    """Return the text that `--start` gives or names, without a byte order mark."""
    if start == "-" and sys.stdin is None:
        raise UsageError("--start -: standard input is closed")
    try:
        if start == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        if start.startswith("FILE:"):
            return regular(Path(start.removeprefix("FILE:")).expanduser()).read_bytes().decode("utf-8-sig")
        return start
    except OSError as error:
        raise UsageError(f"--start {start}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--start {start}: not UTF-8 text: {error}") from None


def chat_template(options: Options, tokenizer: Tokenizer, model: str) -> ChatTemplate | None:
    """Return the template by which a prompt becomes a message to answer; None to continue it as a text."""
    from jaxgpt.chat.template import ChatTemplate

    found = None if options.chat == "off" else ChatTemplate.of(tokenizer)
    if found is None and options.chat == "on":
        raise UsageError(f"--chat on: {model} has no chat template; {called('train')} sft gives it one")
    return found


def prompt_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    prompt: str | Sequence[Message],
    allow_special: bool = False,
    system: str | None = None,
) -> list[int]:
    """Return what the model reads: a text, or messages laid out up to where the answer begins."""
    from jaxgpt.chat.encoded import begun
    from jaxgpt.chat.records import Message

    text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    if template is None:
        if not allow_special:
            note_special(tokenizer, text, "--allow_special")
        return list(begun(text, tokenizer, allow_special))
    if allow_special:
        raise UsageError("--allow_special: no token of a message is a special one; --chat off reads it as a text")
    note_special(tokenizer, text, "--chat off --allow_special")
    before = (Message("system", system),) if system else ()
    messages = (*before, Message("user", prompt)) if isinstance(prompt, str) else prompt
    return list(template.encode(tokenizer, messages, add_generation_prompt=True).ids)


def note_special(tokenizer: Tokenizer, text: str, flags: str) -> None:
    """Note the first special token that a prompt spells, and the flags that would have it read as such."""
    if seen := min((token for token in tokenizer.special_tokens if token in text), key=text.index, default=None):
        note(f"the prompt's {seen!r} is read as plain text; {flags} reads it as the special token")


def line_end(config: GPTConfig, tokenizer: Tokenizer) -> list[int]:
    """Return what an empty prompt starts from where the model has no token that begins a text: a line end, or nothing.

    NanoGPT's models of characters have no such token, and its samples start so.
    """
    begins = (config.bos_token_id, *config.eos_token_ids)
    if any(token is not None and token < config.vocab_size for token in begins):
        return []
    try:
        return tokenizer.encode_part("\n")
    except UsageError:  # no such character
        return []


def fit(options: Options, ids: list[int], context: int) -> tuple[list[int], int]:
    """Return the prompt, cut on the left if it may be, and how many tokens to ask for."""
    slides, cut = options.overflow == "slide", options.truncate == "left"
    room = context - max(len(ids), 1)  # an empty prompt becomes one token
    if room <= 0 and not slides and not cut:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and the model's context is {context}: --truncate left keeps the "
            "prompt's end, --overflow slide reads it in a sliding context"
        )
    count = options.max_new_tokens
    if count is None:
        count = DEFAULT_COUNT if slides else min(DEFAULT_COUNT, room if room > 0 else context // 2)
    keep = context if slides else max(context - count, 1)
    return (ids[-keep:] if cut else ids), count


def print_samples(prompt: str, texts: Sequence[TextStream], steps: Steps) -> None:
    """Print the first sample as it grows, then the others."""
    later = [[prompt] for _ in texts]

    def put(row: int, piece: str) -> None:
        if row > 0:
            later[row].append(piece)
        elif piece:
            print(visible(piece), end="", flush=True)

    put(0, prompt)
    for tokens in steps:
        for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
            if token is not None:
                put(row, text.push(token))
        if all(text.ended for text in texts):
            break
    for row, text in enumerate(texts):
        put(row, text.flush())
    print()
    for pieces in later[1:]:
        print(SEPARATOR, visible("".join(pieces)), sep="\n")
