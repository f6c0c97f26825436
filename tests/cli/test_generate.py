import dataclasses
import io
import os
import pickle
import re
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.chat.template import DEFAULT_TEMPLATE, add_template
from jaxgpt.cli import convert
from jaxgpt.cli.generate import SEPARATOR, line_end, main, prompt_ids, read_prompt
from jaxgpt.cli.speed import TimedStream
from jaxgpt.decode.engine import generate
from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.model.quantized import quantize
from jaxgpt.notes import note
from jaxgpt.runs import weights
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.folder import write_record
from jaxgpt.runs.manifest import Progress, Which
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.tokenizers import CharTokenizer, load_tokenizer

TOKENIZER = CharTokenizer("\nabcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A run's folder: the default run's context, untrained, and the vocabulary padded."""
    folder = tmp_path_factory.mktemp("run")
    config = GPTConfig(32, 64, 16, 1, 2, bos_token_id=None, eos_token_id=None)
    save_params(folder, config, GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    TOKENIZER.save(folder)
    return str(folder)


def call(capsys, *argv: str) -> SimpleNamespace:
    """Return what a command line prints, and its exit code."""
    code = 0
    try:
        main(argv)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return SimpleNamespace(code=code, out=captured.out, err=captured.err)


def expected(run: str, prompt: str, count: int, samples: int = 1, which: Which = "best", **options) -> list[str]:
    config, params = load_params(run, which)
    ids = [TOKENIZER.encode(prompt)] * samples
    options = {"temperature": 0.8, "top_k": 200, "seed": 1337, "vocab_size": 27} | options
    rows = generate(config, params, ids, max_new_tokens=count, **options)
    return [prompt + TOKENIZER.decode(row) for row in rows]


def test_a_run_is_continued_out_of_the_box(run, capsys):
    result = call(capsys, "--init_from", run)
    assert result.out == expected(run, "\n", 63)[0] + "\n"
    assert result.err == "note: the context of 64 is full; --overflow slide goes on\n"


def test_a_checkpoint_is_chosen_by_its_step(capsys, tmp_path):
    config = GPTConfig(32, 64, 16, 1, 2, bos_token_id=None, eos_token_id=None)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        params = GPT(config).init(jax.random.key(step), jnp.zeros((1, 1), jnp.int32))["params"]
        checkpoints.write(Progress(step, best_step=1, best_loss=1.0), params=params)
    checkpoints.wait()
    write_record(tmp_path, config)
    TOKENIZER.save(tmp_path)
    for flags, step in (([], 1), (["--checkpoint=best"], 1), (["--checkpoint=last"], 3), (["--checkpoint=2"], 2)):
        result = call(capsys, "--init_from", str(tmp_path), "--max_new_tokens=9", *flags)
        assert result.out == expected(str(tmp_path), "\n", 9, which=step)[0] + "\n"
    result = call(capsys, "--init_from", str(tmp_path), "--checkpoint=7")
    assert result.code == 2 and "has no checkpoint of step 7; there are [1, 2, 3]" in result.err
    save_pretrained(tmp_path / "hf", config, load_params(tmp_path)[1])
    result = call(capsys, "--init_from", str(tmp_path / "hf"), "--checkpoint=last")
    assert result.code == 2 and "--checkpoint last: only of a run's folder, and" in result.err


def test_an_end_of_text_ends_a_sample_and_is_left_out(run, capsys, tmp_path):
    config, params = load_params(run)
    [whole] = expected(run, "abc", 40)
    (end,) = TOKENIZER.encode(whole[10])
    save_params(tmp_path, dataclasses.replace(config, eos_token_id=end), params)
    TOKENIZER.save(tmp_path)
    result = call(capsys, "--init_from", str(tmp_path), "--start=abc")
    assert result.out == whole[: whole.index(whole[10], 3)] + "\n" and result.err == ""


def test_the_prompt_comes_from_text_file_or_standard_input(run, capsys, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("romeo")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"romeo")))
    outs = {call(capsys, "--init_from", run, "--max_new_tokens=5", "--start", start).out
            for start in ("romeo", f"FILE:{tmp_path}/prompt.txt", "-")}  # fmt: skip
    assert outs == {expected(run, "romeo", 5)[0] + "\n"}


def test_samples_follow_one_another(run, capsys):
    result = call(capsys, "--init_from", run, "--start=abc", "--num_samples=3", "--max_new_tokens=20")
    assert result.out == f"\n{SEPARATOR}\n".join(expected(run, "abc", 20, samples=3)) + "\n"


def test_flags_reach_the_sampler(run, capsys):
    flags = {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 7}
    argv = [f"--{name}={value}" for name, value in flags.items()]
    result = call(capsys, "--init_from", run, "--start=abc", "--max_new_tokens=20", *argv)
    assert result.out == expected(run, "abc", 20, **flags)[0] + "\n"


@pytest.mark.parametrize("kind", ["int8", "int4", "w8a8"])
def test_weights_are_quantized_on_the_way(run, capsys, kind):
    config, params = load_params(run)
    options = {"temperature": 2.0, "top_k": 27, "seed": 1337, "vocab_size": 27}
    [row] = generate(config, quantize(params, kind), [TOKENIZER.encode("abc")], max_new_tokens=40, **options)
    flags = ["--start=abc", "--max_new_tokens=40", "--temperature=2", "--top_k=27", f"--quantize={kind}"]
    assert call(capsys, "--init_from", run, *flags).out == "abc" + TOKENIZER.decode(row) + "\n"


def test_a_stop_text_ends_a_sample_and_is_left_out(run, capsys):
    [whole] = expected(run, "abc", 60)
    stop = whole[-2:]
    result = call(capsys, "--init_from", run, "--start=abc", "--max_new_tokens=60", "--stop", stop)
    assert result.out == "abc" + whole[3 : whole.index(stop, 3)] + "\n"
    several = call(capsys, "--init_from", run, "--max_new_tokens=60", "--stop", "no such", stop, "--start=abc")
    assert several.out == result.out


def test_a_sliding_context_goes_on_past_its_end(run, capsys):
    result = call(capsys, "--init_from", run, "--overflow=slide", "--start=abc")
    assert result.out == expected(run, "abc", 200, overflow="slide")[0] + "\n"


def test_a_prompt_that_is_too_long_is_refused_or_loses_its_beginning(run, capsys):
    long = "abcdefgh" * 10
    result = call(capsys, "--init_from", run, "--start", long)
    assert result.code == 2 and "--truncate left" in result.err
    result = call(capsys, "--init_from", run, "--start", long, "--truncate=left", "--max_new_tokens=10")
    assert result.out == long[:-54] + expected(run, long[-54:], 10)[0] + "\n"
    result = call(capsys, "--init_from", run, "--start", long, "--truncate=left")
    assert result.out == long[:-32] + expected(run, long[-32:], 32)[0] + "\n"


def test_verbose_reports_speed_and_leaves_the_text_alone(run, capsys):
    result = call(capsys, "--init_from", run, "--verbose", "--max_new_tokens=9")
    assert result.out == expected(run, "\n", 9)[0] + "\n"
    assert re.fullmatch(r"prefill: 1 tokens in .* tokens/s\n(decode: \d tokens, .* tokens/s\n)?", result.err)


@pytest.mark.parametrize("flags", [["--draft=ngram"], ["--draft=RUN", "--draft_tokens=3"]])
def test_a_draft_leaves_the_text_alone_and_its_passes_are_reported(run, capsys, flags):
    flags = [flag.replace("RUN", run) for flag in flags]
    result = call(capsys, "--init_from", run, "--start=abcabcabc", "--verbose", "--max_new_tokens=9", *flags)
    assert result.out == expected(run, "abcabcabc", 9)[0] + "\n"
    [rate] = re.findall(r"decode: 8 tokens, (.*) tokens of a sample a pass, .* ms a pass, .* tokens/s\n", result.err)
    assert rate == "4.00" if run in flags[0] else float(rate) >= 1


def test_a_slow_pass_is_not_what_a_pass_takes(monkeypatch):
    """Passes of 1 s choose 2 tokens each, but one compiles a program for a new window, which takes 50."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Stream:
        passes = 0

        def __iter__(self):
            for taken in (3, 1, 0, 50, 0, 1, 0):
                clock[0] += taken
                self.passes += taken > 0
                yield [7]

    meter = TimedStream(Stream, draft=True)
    assert list(meter) == 7 * [[7]]
    assert meter.report(6) == (
        "prefill: 6 tokens in 3.000 s, 2.0 tokens/s\n"
        "decode: 6 tokens, 2.00 tokens of a sample a pass, 1000.00 ms a pass, 2.0 tokens/s"
    )


def test_a_draft_with_another_tokenizer_is_refused(run, capsys, tmp_path):
    save_params(tmp_path, *load_params(run))
    CharTokenizer("\nabcdefghijklmnopqrstuvwxyZ").save(tmp_path)
    result = call(capsys, "--init_from", run, "--draft", str(tmp_path))
    assert result.code == 2
    assert result.err == f"error: --draft {tmp_path}: its tokenizer is another than that of {run}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_samples=0"], "num_samples is 0; it must be a whole number from 1 up"),
        (["--max_new_tokens=-1"], "max_new_tokens is -1; it must be a whole number from 0 up, or none"),
        (["--temperature=-1"], "temperature is -1.0; it must be"),
        (["--temperature=nan"], "temperature is nan; it must be"),
        (["--top_k=0"], "top_k is 0; it must be"),
        (["--top_p=0"], "top_p is 0.0; it must be"),
        (["--min_p=2"], "min_p is 2.0; it must be"),
        (["--seed=-1"], "seed is -1; it must be"),
        (["--quantize=int2"], "--quantize: 'int2' is not int8|int4|w8a8|none; did you mean"),
        (["--draft_tokens=2"], "--draft_tokens 2: only with --draft"),
        (["--draft=ngram", "--draft_tokens=0"], "draft_tokens is 0; it must be a whole number from 1 up, or none"),
        (["--compare", "a", "b", "--prompts=x.txt", "--draft=ngram"], "--draft ngram: not with --compare"),
        (["--stop="], "stop is ('',); it must be a list of texts, none of them empty"),
        (["--overflow=slid"], "--overflow: 'slid' is not error|slide; did you mean 'slide'?"),
        (["--start=FILE:nowhere.txt"], "--start FILE:nowhere.txt: No such file or directory"),
        (["--tempreature=1"], "unknown flag --tempreature; did you mean '--temperature'?"),
    ],
)
def test_bad_flags_are_refused_before_a_model_is_opened(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(weights, "open_model", None)
    result = call(capsys, *argv)
    assert result.code == 2 and result.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--start=ABC"], "character 'A' (U+0041) is not among the 27"),
        (["--start=abc", "--max_new_tokens=62"], "a prompt of 3 tokens and 62 new ones make 65"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(run, argv, message, capsys):
    result = call(capsys, "--init_from", run, *argv)
    assert result.code == 2 and result.err.startswith(f"error: {message}")


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(capsys):
    result = call(capsys, "--init_from", "gpt2-medum")
    assert result.code == 2
    assert result.err.startswith("error: gpt2-medum: no such folder;") and "did you mean 'gpt2-medium'?" in result.err


def test_flags_are_read_without_waiting_for_jax():
    code = "import sys, jaxgpt.cli.generate; sys.exit('jax' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_pretrained_weights_without_a_tokenizer_get_gpt2s_if_the_vocabulary_is_its_size(tmp_path, capsys):
    config = GPTConfig(50257, 16, 8, 1, 2)
    save_pretrained(tmp_path, config, GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    result = call(capsys, "--init_from", str(tmp_path), "--start=Hello", "--max_new_tokens=3")
    assert result.code == 0 and result.out.startswith("Hello") and "are taken as GPT-2's" in result.err
    small = dataclasses.replace(config, vocab_size=300)
    save_pretrained(tmp_path, small, GPT(small).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    assert call(capsys, "--init_from", str(tmp_path)).code == 2


def test_a_prompts_file_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("To be")
    assert read_prompt("FILE:~/prompt.txt") == "To be" and read_prompt("~/prompt.txt") == "~/prompt.txt"


@pytest.mark.parametrize("template", [None, DEFAULT_TEMPLATE], ids=["text", "message"])
def test_special_tokens_of_a_prompt_are_plain_unless_asked_for_and_noted(capsys, template):
    note.cache_clear()
    tokenizer = add_template(load_tokenizer("gpt2"), DEFAULT_TEMPLATE)
    prompt = "a <|end|> <|endoftext|>"
    ids = prompt_ids(tokenizer, template, prompt)
    assert 50256 not in ids and (template is not None or ids == tokenizer.encode(prompt))
    [line] = capsys.readouterr().err.splitlines()
    assert "'<|end|>'" in line and "--allow_special" in line and ("--chat off" in line) == (template is not None)
    if template is None:
        assert prompt_ids(tokenizer, None, prompt, True) == tokenizer.encode(prompt, allow_special=True)
    else:
        with pytest.raises(UsageError, match="--allow_special: no token of a message .* --chat off"):
            prompt_ids(tokenizer, template, prompt, True)
    prompt_ids(tokenizer, template, "plain")
    assert capsys.readouterr().err == ""


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "prompt.txt").write_bytes("\ufeffTo be".encode())
    assert read_prompt(f"FILE:{tmp_path / 'prompt.txt'}") == "To be"


def test_an_empty_prompt_starts_from_a_line_end_where_no_token_begins_a_text():
    chars = GPTConfig(vocab_size=4, bos_token_id=None, eos_token_id=50256)
    assert line_end(chars, CharTokenizer("a\nb")) == [0]
    assert line_end(chars, CharTokenizer("ab")) == []
    assert line_end(GPTConfig(), load_tokenizer("gpt2")) == []


def test_nanogpts_folder_speaks_in_its_own_characters(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    chars, width = "\n !abc", 8
    shapes = {"wte": (len(chars), width), "wpe": (16, width), "ln_f": (width,)}
    shapes |= {f"h.0.{name}": (width,) for name in ("ln_1", "ln_2")}
    shapes |= {"h.0.attn.c_attn": (3 * width, width), "h.0.attn.c_proj": (width, width)}
    shapes |= {"h.0.mlp.c_fc": (4 * width, width), "h.0.mlp.c_proj": (width, 4 * width)}
    model = {f"transformer.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": width, "block_size": 16, "bias": False, "dropout": 0.0}
    torch.save({"model": model, "model_args": {**arguments, "vocab_size": len(chars)}}, tmp_path / "ckpt.pt")
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {c: i for i, c in enumerate(chars)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    convert.main([str(tmp_path), str(tmp_path / "run"), "--allow_pickle"])
    capsys.readouterr()
    for source, start in product((tmp_path, tmp_path / "ckpt.pt", tmp_path / "run"), ("cab!", "")):
        argv = ["--init_from", str(source), "--allow_pickle", "--start", start, "--max_new_tokens", "2"]
        result = call(capsys, *argv)
        assert result.out.startswith(start) and len(result.out) == len(start) + 3 and set(result.out) <= set(chars)
