"""Files that are damaged at random: each loads as what it was, or is refused with our error, and no other."""

import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxgpt.chat import template_process as templates
from jaxgpt.chat.records import Message
from jaxgpt.chat.template import DEFAULT_TEMPLATE, ChatTemplate, add_template
from jaxgpt.cli.train import read_stage
from jaxgpt.data.tokens.token_files import TokenFile
from jaxgpt.data.tokens.token_writer import write_token_file
from jaxgpt.errors import RunError, UsageError
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.folder import read_record, write_record
from jaxgpt.runs.manifest import Progress
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.stages.pretrain import PretrainConfig
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer
from jaxgpt.train.config import OptimizerConfig
from jaxgpt.train.metrics import MetricsLog, is_row, read_rows
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import TrainState

pytestmark = pytest.mark.usefixtures("unchecked_types")
# A deadline, so that a hang is a failure.
fuzz = settings(
    max_examples=60,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
PICKLE = "pytorch_model.bin"
CONFIG = GPTConfig(vocab_size=61, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=3)
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom … äöü\n" * 20


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ODD = st.sampled_from(
    [None, True, -1, 0, 1, 1.5, 2**31, 10**18, 10**400, 1e308, float("nan"), "", "nan", "x" * 99, "\0", "\ud800"]
    + [[], {}, [[]], {"a": {}}, nested(400)]
)


# What a tokenizer's files may hold in place of a token or a name.
ODD_TOKENS = ODD | st.sampled_from(["\ud800", "a\udfff", "\ud83d\ude42", "Ġ", "q", "<|endoftext|>", "th", "9" * 5000])


@st.composite
def damage(draw: st.DrawFn, content: bytes, odd: st.SearchStrategy[Any] = ODD) -> bytes:
    """Return bytes cut, changed or lengthened somewhere; a JSON object may have a value or name changed instead."""
    kind = draw(st.sampled_from(["cut", "change", "insert", "json"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    if kind == "json" and content.startswith(b'{"'):
        value = json.loads(content)
        edit(draw, value, odd)
        return json.dumps(value).encode()
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3)) if content else 0):
        changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def edit(draw: st.DrawFn, value: dict[str, Any] | list[Any], odd: st.SearchStrategy[Any]) -> None:
    """Change, remove or add one value, at any depth."""
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value)))) if value else "a"
    if value and isinstance(value[key], dict | list) and value[key] and draw(st.booleans()):
        edit(draw, value[key], odd)
    elif value and draw(st.booleans()):
        del value[key]
    elif isinstance(value, dict):
        name = draw(odd)
        names = [key, "a", "auto_map", "../x", *([name] if isinstance(name, str) else [])]
        value[draw(st.sampled_from(names))] = draw(odd)
    elif value:
        value[key] = draw(odd)


def broken(data: st.DataObject, good: Path, place: Path, odd: st.SearchStrategy[Any] = ODD) -> Path:
    """Return a copy of a folder in which one file is damaged, missing, or a pipe."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files), "file")
    content = data.draw(damage(file.read_bytes(), odd), "content")
    file.unlink()
    kind = data.draw(st.integers(0, 9), "missing or a pipe")
    if kind == 1:
        os.mkfifo(file)
    elif kind > 1:
        file.write_bytes(content)
    return place


def init() -> Any:
    return GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module", params=["safetensors", "shards", "pickle", "Flax"])
def hf_folder(request, flax_layout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    save_pretrained(folder, CONFIG, init())
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if request.param == "safetensors":
        return folder
    weights.unlink()
    if request.param == "pickle":
        torch.save({name: torch.nn.Parameter(torch.from_numpy(t)) for name, t in tensors.items()}, folder / PICKLE)
    elif request.param == "Flax":
        (folder / "flax_model.msgpack").write_bytes(to_bytes(flax_layout(tensors)))
    else:
        places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
        for file in set(places.values()):
            save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@fuzz
@given(data=st.data())
def test_pretrained_weights(hf_folder, tmp_path, data):
    """The values have no checksum, so those that load may be others; but they are finite, and of the right shape."""
    folder = broken(data, hf_folder, tmp_path / "hf")
    try:
        config, params = load_pretrained(folder, allow_pickle=True)
    except (UsageError, RunError) as error:
        assert str(folder) in str(error)
    else:
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init())
        assert config.n_layer == CONFIG.n_layer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_params(folder, CONFIG, init())
    return folder


@fuzz
@given(data=st.data())
def test_checkpoints(run_folder, tmp_path, data):
    folder = broken(data, run_folder, tmp_path / "run")
    try:
        config, params = load_params(folder)
    except (UsageError, RunError) as error:
        assert str(folder) in str(error)
    else:
        assert config == CONFIG
        assert_same(params, init())


@fuzz
@given(data=st.data())
def test_models_whose_config_is_taken_as_it_is(run_folder, tmp_path, data):
    """It may be another model's, but then it is one, and the weights fit it."""
    folder = Path(shutil.copytree(run_folder, tmp_path / "run", dirs_exist_ok=True))
    (folder / "config.json").write_bytes(data.draw(damage((run_folder / "config.json").read_bytes())))
    try:
        config, params = load_params(folder, ignore_config_change=True)
    except (UsageError, RunError) as error:
        assert str(folder) in str(error)
    else:
        assert isinstance(config, GPTConfig)
        assert_same(params, init())


@pytest.fixture(scope="module")
def state() -> TrainState:
    return TrainState.create(init(), adamw(OptimizerConfig(), CONFIG))


@pytest.fixture(scope="module")
def stopped_folder(state, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, Progress(0))
    checkpoints.wait()
    return folder


@fuzz
@given(data=st.data())
def test_states_to_resume(stopped_folder, state, tmp_path, data):
    folder = broken(data, stopped_folder, tmp_path / "run")
    try:
        restored = Checkpoints(folder).restore(state, 0)
    except (UsageError, RunError) as error:
        assert str(folder) in str(error)
    else:
        assert_same(restored, state)


@pytest.mark.parametrize("taken", [[], ["--ignore_config_change"]], ids=["guarded", "taken as it is"])
@fuzz
@given(data=st.data())
def test_records_of_runs(tmp_path, taken, data):
    begun = replace(PretrainConfig(), n_layer=1, out_dir=str(tmp_path), init_from="resume")
    write_record(tmp_path, CONFIG, stage="pretrain", flags=vars(begun), data={"dataset": "plays"}, new=True)
    (tmp_path / "config.json").write_bytes(data.draw(damage((tmp_path / "config.json").read_bytes())))
    try:
        flags = read_stage(["--init_from", "resume", "--out_dir", str(tmp_path), *taken]).flags
        record = read_record(tmp_path, ignore_change=bool(taken))
    except (UsageError, RunError):
        return
    assert isinstance(flags.batch_size, int) and 0 < flags.learning_rate < float("inf")
    if not taken:
        assert (flags, record["model"], record["data"]) == (begun, CONFIG, {"dataset": "plays"})


@fuzz
@given(data=st.data())
def test_metrics_of_runs(tmp_path, data):
    """A row that was damaged is left out, or is another one; the run goes on with those that are rows."""
    rows = [{"step": step, "split": "train", "loss": 1.5, "mfu": None} for step in range(1, 4)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[1] = data.draw(damage(lines[1]))
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    MetricsLog(tmp_path, step=3).close()
    found = read_rows(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in found)
    assert all(is_row(row) for row in found) and rows[2] in found


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = CharTokenizer(TEXT)
    write_token_file(folder / "train.bin", iter([np.array(tokenizer.encode(TEXT), np.uint32)]), tokenizer)
    return folder


@fuzz
@given(data=st.data())
def test_token_files(tokens, tmp_path, data):
    folder = broken(data, tokens, tmp_path / "tokens")
    try:
        ids = TokenFile(folder / "train.bin", vocab_size=100)
    except (UsageError, RunError) as error:
        assert "train.bin" in str(error)
        return
    if ids.sidecar is None:  # nothing says what the ids were
        assert int(ids[:].max()) < 100
    else:
        np.testing.assert_array_equal(ids[:], TokenFile(tokens / "train.bin")[:])


@pytest.fixture(scope="module", params=["char", "bpe", "tokenizer.json"])
def tokenizer_folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = CharTokenizer(TEXT) if request.param == "char" else BPETokenizer.train([TEXT], 280, progress=False)
    tokenizer.save(folder)
    if request.param == "tokenizer.json":
        vocab = json.loads((folder / "vocab.json").read_text())
        merges = (folder / "merges.txt").read_text().splitlines()[1:]
        added = [{"id": vocab["<|endoftext|>"], "content": "<|endoftext|>", "special": True}]
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
        split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        contents = {"model": model, "pre_tokenizer": split, "added_tokens": added}
        for file in folder.iterdir():
            file.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(contents))
    return folder


@fuzz
@given(data=st.data())
def test_tokenizers(tokenizer_folder, tmp_path, data):
    """The files have no checksum: what loads may be another tokenizer, but it is one, and stays it."""
    folder = broken(data, tokenizer_folder, tmp_path / "tokenizer", ODD_TOKENS)
    try:
        tokenizer: Tokenizer = load_tokenizer(folder)
    except (UsageError, RunError) as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.fingerprint, again.eos_token_id) == (tokenizer.fingerprint, tokenizer.eos_token_id)
    for text in (TEXT * 8, "<|endoftext|>th"):  # the first goes to tiktoken, where that gives the same ids
        for special in (False, True):
            try:
                ids = tokenizer.encode(text, allow_special=special)
            except UsageError as error:
                assert "not among" in str(error), "a character is gone"
                continue
            assert all(0 <= i < tokenizer.vocab_size for i in ids)
            assert tokenizer.decode(ids) == text


VALUES = st.sampled_from(
    ["messages", "messages[0].content", "'a b '", "'<|x|>'", "'\\ud800'", "'%99999999d'", "7", "99999999", "1.5", "[1]",
     "none", "{'a': 1}", "nothing", "namespace(x=1)", "range(9)", "raise_exception"]
)  # fmt: skip
FILTERS = st.sampled_from(
    ["center", "indent", "wordwrap", "join", "sum", "list", "length", "replace", "format", "batch", "tojson", "map",
     "string", "reverse", "first", "int", "float", "upper", "pprint", "truncate", "xmlattr", "urlize", "nothing"]
)  # fmt: skip


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["*", "+", "~", "%", "**", "//", "in", "and", "=="])
    return (
        st.builds("({} {} {})".format, inner, operators, inner)
        | st.builds("({}) | {}".format, inner, FILTERS)
        | st.builds("({}) | {}({})".format, inner, FILTERS, inner)
        | st.builds("({}).{}({})".format, inner, st.sampled_from(["rjust", "format", "items", "__class__"]), inner)
        | st.builds("({})[{}]".format, inner, inner)
    )


VALUE = st.recursive(VALUES, larger, max_leaves=6)
STATEMENT = st.builds("{{{{ {} }}}}".format, VALUE) | st.builds(
    "{{% for x in {} %}}{{% generation %}}{{{{ {} }}}}<|x|>{{% endgeneration %}}{{% endfor %}}".format, VALUE, VALUE
)


@pytest.fixture(scope="module")
def renderer():
    renderer = templates.Renderer(memory=1 << 27, seconds=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "renderer", renderer)
        yield
    renderer.end()


@pytest.fixture(scope="module")
def small_bpe() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 270)


@fuzz
@given(
    source=st.lists(STATEMENT, min_size=1, max_size=3).map("<|x|>".join)
    | damage(DEFAULT_TEMPLATE.source.encode()).map(lambda content: content.decode(errors="replace")),
    content=st.sampled_from(["x", "<|x|><|end|>", "\ud800", "a " * 999]),
)
def test_chat_templates(renderer, small_bpe, source, content):
    """What a template makes is a text whose every token is the tokenizer's, or an error in a line."""
    template = ChatTemplate(source, "t.jinja")
    try:
        tokenizer = add_template(small_bpe, template)
        encoded = template.encode(tokenizer, (Message("user", content), Message("assistant", content)))
    except UsageError as error:
        assert str(error).startswith("t.jinja: ") and "\n" not in str(error) and len(str(error)) < 400
        return
    assert all(0 <= i < tokenizer.vocab_size for i in encoded.ids)
    assert len(encoded.ids) == len(encoded.weights) and set(encoded.weights) <= {0.0, 1.0}
    tokenizer.decode(encoded.ids).encode()
