"""lm-evaluation-harness itself, its own `hf` model on the same weights beside ours: no stub of either."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgpt.chat import DEFAULT_TEMPLATE, add_template
from jaxgpt.cli import harness
from jaxgpt.decode import generate
from jaxgpt.errors import UsageError
from jaxgpt.evaluate import measure_texts, read_documents
from jaxgpt.hf.convert import save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs.weights import save_params
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer

ROOT = Path(__file__).parents[2]
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed ([eval])")
WORDS = "the a quick slow brown red fox dog cat jumps runs over under lazy tired wall house man sees finds it".split()
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
{rest}
metadata: {{version: 1.0}}
"""
TASKS = {
    "local_choice": (
        "multiple_choice",
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]",
    ),
    "local_text": (
        "loglikelihood_rolling",
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]",
    ),
    "local_word": (
        "loglikelihood",
        "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\ndoc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n"
        "metric_list: [{metric: perplexity}, {metric: acc}]",
    ),
    "local_answer": (
        "generate_until",
        'doc_to_text: "it {{question}}"\ndoc_to_target: "{{choices[0]}}"\n'
        'generation_kwargs: {until: ["he", "wall"], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]',
    ),
}


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw) -> Path:
    """A model as a run and exported, and tasks with data, some of them longer than the context."""
    folder, rng = tmp_path_factory.mktemp("harness"), np.random.default_rng(0)
    tokenizer = add_template(BPETokenizer.train([sentence(rng, 400, 401)], 300), DEFAULT_TEMPLATE)
    config = GPTConfig(tokenizer.vocab_size, 48, 16, 2, 2)
    eos = tokenizer.eos_token_id
    config = GPTConfig(tokenizer.vocab_size, 48, 16, 2, 2, bos_token_id=eos, eos_token_id=eos)
    save_params(folder / "run", config, draw(config))
    tokenizer.save(folder / "run")
    save_pretrained(folder / "hf", config, draw(config), tokenizer=tokenizer)
    lines = []
    for number in range(20):
        question = "" if number == 3 else sentence(rng, 1, 90 if number % 5 == 4 else 12)
        choices = [sentence(rng, 1, 7) for _ in range(3)]
        text = sentence(rng, 2, 150)
        lines.append({"question": question, "choices": choices, "answer": number % 3, "text": text})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, (kind, rest) in TASKS.items():
        text = TASK.format(name=name, file=folder / "data.jsonl", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return folder


# Importing the harness takes ten seconds, so that one process calls the command several times; and reading its own
# thousands of tasks eight more each time, so that it knows only those of `--include_path`.
CALLS = """
import functools, json, sys
from lm_eval.tasks import TaskManager
from jaxgpt.cli.entry import harness
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    harness()
"""


def call(place: Path, *calls: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `jaxgpt-eval` with each list of words."""
    env = {**os.environ, "HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    words = json.dumps([["--include_path", str(place), *words] for words in calls])
    return subprocess.run([sys.executable, "-c", CALLS, words], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def measured(place: Path) -> dict[str, SimpleNamespace]:
    """The harness's results and, by task, its samples: of our model and of its own, of texts and of conversations."""
    ours, theirs = (["--model", "jaxgpt", "--model_args"], ["--model", "hf", "--device", "cpu", "--model_args"])
    chats = ["--apply_chat_template", "--batch_size", "auto", "--limit", "6"]
    calls = {
        "ours": [*ours, f"path={place / 'run'}", "--batch_size", "8"],
        "theirs": [*theirs, f"pretrained={place / 'hf'},dtype=float32"],
        "ours on chats": [*ours, f"path={place / 'hf'}", *chats],
        "theirs on chats": [*theirs, f"pretrained={place / 'hf'},dtype=float32", *chats],
    }
    more = ["--tasks", ",".join(TASKS), "--log_samples", "--output_path"]
    result = call(place, *([*words, *more, str(place / name)] for name, words in calls.items()))
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: read(place / name) for name in calls}


def read(out: Path) -> SimpleNamespace:
    [results] = out.rglob("results_*.json")
    samples = {
        name: [json.loads(line) for line in next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in TASKS
        if list(out.rglob(f"samples_{name}_*.jsonl"))
    }
    return SimpleNamespace(results=json.loads(results.read_text())["results"], samples=samples)


@installed
@pytest.mark.slow
def test_the_harness_gets_from_us_what_its_own_model_says(measured):
    ours, theirs = measured["ours"], measured["theirs"]
    assert ours.samples.keys() == theirs.samples.keys() == TASKS.keys()
    for name in TASKS:
        for one, other in zip(ours.samples[name], theirs.samples[name], strict=True):
            assert one["doc_id"] == other["doc_id"] and one["arguments"] == other["arguments"]
            for mine, its in zip(one["resps"], other["resps"], strict=True):
                if name == "local_answer":
                    assert mine == its
                    continue
                (mine, *greedy), (its, *also) = np.ravel(mine[0]), np.ravel(its[0])
                assert float(mine) == pytest.approx(float(its), abs=1e-3) and greedy == also
        for figure, value in ours.results[name].items():
            if isinstance(value, float):
                exact = figure.startswith(("acc", "exact_match"))
                assert value == pytest.approx(theirs.results[name][figure], rel=0 if exact else 1e-4, abs=0), figure
    assert len({text for sample in ours.samples["local_answer"] for text in sample["resps"][0]}) > 5


@installed
@pytest.mark.slow
def test_a_chat_template_is_rendered_as_by_transformers(measured):
    both = [measured[name].samples["local_answer"] for name in ("ours on chats", "theirs on chats")]
    for one, other in zip(*both, strict=True):
        assert "<|assistant|>" in str(one["arguments"]) and one["arguments"] == other["arguments"]
        assert one["resps"] == other["resps"]


@installed
@pytest.mark.parametrize(
    ("path", "task", "message"),
    [
        ("no-such-run", "local_answer", "no-such-run: no such folder"),
        ("run", "no_such_task", "error: --tasks: Tasks not found: no_such_task"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(place, capsys, monkeypatch, path, task, message):
    from lm_eval.tasks import TaskManager

    few = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", few)
    monkeypatch.setattr(sys, "argv", ["jaxgpt-eval"])
    words = ["--include_path", str(place), "--model", "jaxgpt", "--model_args", f"path={path}", "--tasks", task]
    with pytest.raises(SystemExit) as end:
        harness.main(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@installed
def test_what_cannot_be_done_is_refused(place):
    from jaxgpt.evaluate.harness import HarnessModel

    run = str(place / "run")
    for args, message in (
        ({"lenght": 3}, "there is no 'lenght'; valid are path, checkpoint"),
        ({"max_length": 600}, "max_length is 600; the model's context is 48"),
        ({"max_length": "long"}, "max_length is 'long'; it must be a whole number from 1 up"),
        ({"max_gen_toks": -5}, "max_gen_toks is -5; it must be a whole number from 1 up"),
        ({"batch_size": "8x"}, "--batch_size is '8x'; it must be a whole number from 1 up"),
        ({"fsdp": "two"}, "fsdp is 'two'; it must be a whole number from 1 up"),
        ({"allow_pickle": "no"}, "allow_pickle is 'no'; it must be True or False"),
        ({"quantize": "int5"}, "quantize is 'int5'; it must be one of int8, int4, w8a8"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be one of auto, float32, bfloat16"),
        ({"device": "mps:0"}, "--device is 'mps'; it must be one of auto, cpu, cuda, tpu"),
    ):
        with pytest.raises(UsageError, match=message):
            HarnessModel(run, **args)
    model = HarnessModel(run, batch_size="auto", quantize="int8")
    assert model.loglikelihood_rolling([]) == []
    for how, message in (
        ({"until": ["x"], "max_gen_toks": 48}, "48 tokens to generate leave no room for a prompt in a context of 48"),
        ({"until": ["x"], "max_gen_toks": 4, "num_beams": 2}, "num_beams is not supported; valid are until"),
    ):
        with pytest.raises(UsageError, match=message):
            model.generate_until([SimpleNamespace(args=("the fox", how))])


@installed
def test_generate_evaluate_and_the_harness_say_the_same_before_and_after_export(place):
    from jaxgpt.evaluate.harness import HarnessModel

    found, text = [], "the quick brown fox finds it"
    (place / "text.txt").write_text(text)
    for name in ("run", "hf"):
        model = HarnessModel(str(place / name), batch_size=4)
        scorer = model.scorer
        score = measure_texts(scorer, read_documents(str(place / "text.txt"), scorer.tokenizer, prefix=True))
        [whole] = model.loglikelihood_rolling([SimpleNamespace(args=(text,))])
        assert -whole == pytest.approx(score.nats, rel=1e-6)
        [new] = generate(scorer.config, scorer.params, [scorer.tokenizer.encode(text)], max_new_tokens=9)
        how = {"until": [], "max_gen_toks": 9}
        one, _, again = model.generate_until([SimpleNamespace(args=(prompt, how)) for prompt in (text, "a", text)])
        assert one == again == model.tok_decode(new)
        found.append((score.nats, one))
    assert found[0] == found[1]


@installed
def test_characters_begin_with_a_line_end(draw, tmp_path):
    from jaxgpt.evaluate.harness import HarnessModel

    for text, name in (("\nabc", "line"), ("abc", "none")):
        tokenizer = CharTokenizer(text)
        config = GPTConfig(tokenizer.vocab_size, 8, 16, 1, 2, bos_token_id=None, eos_token_id=None)
        save_params(tmp_path / name, config, draw(config))
        tokenizer.save(tmp_path / name)
    model, request = HarnessModel(str(tmp_path / "line")), SimpleNamespace(args=("abcabcabcabcab",))
    [whole] = model.loglikelihood_rolling([request])
    parts = model.loglikelihood([SimpleNamespace(args=pair) for pair in (("", "abcabcab"), ("bcabcab", "cabc"))])
    assert whole < parts[0][0] < 0 and model.prefix_token_id == tokenizer.encode("a")[0] == 0
    with pytest.raises(UsageError, match="its tokenizer has no end-of-text token, and no line end"):
        HarnessModel(str(tmp_path / "none")).loglikelihood_rolling([request])


def test_without_the_harness_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "jaxgpt.evaluate.harness", raising=False)
    with pytest.raises(SystemExit) as end:
        harness.main([])
    assert end.value.code == 2
    assert "lm_eval is missing: pip install 'jaxgpt[eval]'" in capsys.readouterr().err


def test_a_conversation_is_a_text_too():
    tokenizer = add_template(BPETokenizer.train(["hello"], 257), DEFAULT_TEMPLATE)
    with pytest.raises(UsageError, match="special tokens"):
        DEFAULT_TEMPLATE.render(BPETokenizer.train(["hello"], 257), [])
    assert DEFAULT_TEMPLATE.render(tokenizer, [], True) == "<|assistant|>"
