"""Arguments of the library, wrong at random: each is refused with our error or gives a right result, and no other."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgpt import GPT, GPTConfig, generate, load_corpus, load_pretrained, load_tokenizer, save_pretrained
from jaxgpt.data.batches import eval_batch, random_batch
from jaxgpt.data.packing import pack, pad_batch
from jaxgpt.decode.continuous import generate_many
from jaxgpt.decode.draft import DraftModel, PromptLookup
from jaxgpt.decode.engine import stream
from jaxgpt.errors import UsageError
from jaxgpt.mesh import make_mesh
from jaxgpt.model.lora_config import LoRA
from jaxgpt.model.quantized import quantize
from jaxgpt.objectives import reward
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.tokenizers.char import CharTokenizer
from jaxgpt.tokenizers.tokenizer import Tokenizer
from jaxgpt.train import make_step
from jaxgpt.train.config import OptimizerConfig, trains
from jaxgpt.train.state import init_params

pytestmark = pytest.mark.usefixtures("unchecked_types")
fuzz = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
CONFIG = GPTConfig(vocab_size=61, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=3)
PARAMS = GPT(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
SCORES = GPT(replace(CONFIG, labels=("reward",)))
TOKENIZER = CharTokenizer("abc\n")
NUMBERS: list[Any] = [-1, 0, 1, 2, 3, 1.5, 1e-300, 1e300, 10**18, 10**400, float("nan"), float("inf"), True]
ARRAYS: list[Any] = [
    np.int64(2), np.float32(0.5), np.array(2), jnp.array(2), np.array([1, 2]), jnp.array([[1, 2]]), np.array([1.0]),
    np.array([[1, 2], [3, 4]]), np.array(["a"]), np.array([None]), np.zeros((0, 2)), np.array([2**63], np.uint64),
    np.array([True]), np.array(1j), np.zeros((1, 1, 1), int),
]  # fmt: skip
OTHERS: list[Any] = [
    None, "", "a", "nan", "\0", "\ud800", b"a", "x" * 300, [], [[]], [1, 2], [1.5], ["a"], [[1, 2]], [[1], [2, 3]],
    [[60]], [[61]], [[-1]], [[[1]]], [None], (), {}, {"a": {}}, {1}, range(3), range(10**12), [range(10**12)], object(),
    int, jax.random.key(0), Path("."), Ellipsis, slice(None), lambda: None,
]  # fmt: skip
ODD = st.sampled_from([*NUMBERS, *ARRAYS, *OTHERS])


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Let our own error pass, if it is one short line. A call that does not end is ended, and fails."""
    before = signal.signal(signal.SIGALRM, _fail)
    signal.alarm(60)
    try:
        yield
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _fail(number: int, frame: FrameType | None) -> None:
    raise AssertionError("the call does not end")


def some(draw: st.DataObject, valid: dict[str, Any], odd: st.SearchStrategy[Any] = ODD) -> dict[str, Any]:
    """Return arguments of which one or two are replaced."""
    names = draw.draw(st.lists(st.sampled_from(sorted(valid)), min_size=1, max_size=2, unique=True), "names")
    return {**valid, **{name: draw.draw(odd, name) for name in names}}


GENERATE = {
    "config": CONFIG, "params": PARAMS, "prompts": [[1, 2], [4]], "max_new_tokens": 2, "seed": 0, "dtype": "float32",
    "overflow": "error", "eos_token_id": None,
}  # fmt: skip
SAMPLING = {
    "temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "vocab_size": 60,
}  # fmt: skip


def assert_continued(rows: list[list[int]]) -> None:
    assert all(type(token) is int and 0 <= token < CONFIG.vocab_size for row in rows for token in row)


@fuzz
@given(data=st.data())
def test_generate(data):
    # A context that slides goes on for as many tokens as are asked for.
    given = some(data, {**GENERATE, **SAMPLING, "draft": None})
    with refused():
        assert_continued(generate(**given))


@fuzz
@given(data=st.data())
def test_stream(data):
    with refused():
        rows = list(stream(**some(data, {**GENERATE, **SAMPLING, "draft": None})))
        assert_continued([[token for token in row if token is not None] for row in rows])


@fuzz
@given(data=st.data())
def test_generate_many(data):
    with refused():
        rows = generate_many(**some(data, {**GENERATE, **SAMPLING, "batch_size": 2}))
        assert_continued(rows)


@fuzz
@given(data=st.data())
def test_drafts(data):
    with refused():
        lookup = PromptLookup(**some(data, {"tokens": 2, "ngram": 2}))
        assert_continued(generate(**GENERATE, draft=lookup))
    with refused():
        model = DraftModel(**some(data, {"config": CONFIG, "params": PARAMS, "tokens": 2}))
        assert_continued(generate(**GENERATE, draft=model))


@fuzz
@given(data=st.data())
def test_configs(data):
    """What is taken is plain: it can be hashed, as `jit` needs, and written as JSON."""
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    with refused():
        config = GPTConfig(**some(data, fields))
        assert {type(value) for value in vars(config).values()} <= {int, float, str, bool, tuple, type(None)}
        assert hash(config) == hash(GPTConfig(**vars(config)))
        assert GPTConfig.from_hf(config.to_hf()).vocab_size == config.vocab_size
    odd = data.draw(ODD)
    with refused():
        GPTConfig.preset(odd)
    with refused():
        GPTConfig.from_hf(odd)
    with refused():
        GPTConfig.from_hf(some(data, CONFIG.to_hf()))


@fuzz
@given(data=st.data())
def test_recipes(data):
    for kind in (OptimizerConfig, LoRA):
        with refused():
            fields = kind.__dataclass_fields__
            hash(kind(**some(data, {name: getattr(kind(), name) for name in fields})))


@fuzz
@given(odd=ODD)
def test_the_parts_of_a_loop_of_ones_own(odd):
    for part in (
        lambda: reward(SCORES, centring=odd),
        lambda: make_step(reward(SCORES), optax.sgd(0.1), seed=0, accumulate=odd),
        lambda: init_params(SCORES, seed=odd),
        lambda: trains(CONFIG, odd),
        lambda: make_mesh(fsdp=odd),
        lambda: make_mesh(tensor=odd),
    ):
        with refused():
            part()


@fuzz
@given(data=st.data())
def test_quantize(data):
    with refused():
        quantize(**some(data, {"params": PARAMS, "kind": "int8"}))


@fuzz
@given(data=st.data())
def test_batches(data):
    ids = np.arange(50, dtype=np.uint16)
    with refused():
        batch = random_batch(**some(data, {
            "data": ids, "seed": 0, "step": 0, "batch_size": 2, "block_size": 4, "shard": 0, "num_shards": 1,
            "shuffle": True,
        }))  # fmt: skip
        assert batch.tokens.dtype == np.int32 and (batch.tokens >= 0).all()
    with refused():
        batch = eval_batch(**some(data, {"data": ids, "index": 0, "count": 3, "batch_size": 2, "block_size": 4}))
        assert batch.tokens.dtype == np.int32 and (batch.tokens >= 0).all()
    documents = {"documents": [[1, 2, 3], [4, 5]], "length": 4, "weights": [[1, 1, 1], [0, 1]], "pad_id": 0}
    for lay in (pad_batch, pack):
        with refused():
            batch = lay(**some(data, documents))
            assert batch.tokens.dtype == np.int32 and (batch.tokens >= 0).all()


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


@fuzz
@given(data=st.data())
def test_tokenizers(gpt2, data):
    odd = data.draw(ODD)
    with refused():
        load_tokenizer(odd)
    for tokenizer in (TOKENIZER, gpt2):
        with refused():
            given = some(data, {"text": "abc", "allow_special": False})
            assert tokenizer.decode(tokenizer.encode(**given)) in (given["text"], "\N{REPLACEMENT CHARACTER}")
        with refused():
            assert isinstance(tokenizer.decode(odd), str)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    save_pretrained("good", CONFIG, PARAMS)
    (tmp_path / "text.txt").write_text("abc abc ab\n" * 40)
    return tmp_path


@fuzz
@given(data=st.data())
def test_folders(folder, data):
    with refused():
        save_pretrained(**some(data, {"directory": "hf", "config": CONFIG, "params": PARAMS, "tokenizer": None}))
    with refused():
        loaded = load_pretrained(**some(data, {
            "source": "good", "dtype": "float32", "allow_pickle": False, "revision": None,
        }))  # fmt: skip
        assert loaded[0] == CONFIG


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_params(folder, CONFIG, PARAMS)
    return folder


@fuzz
@given(data=st.data())
def test_runs(run, data):
    with refused():
        assert load_params(**some(data, {"run": run, "which": "best", "dtype": None}))[0] == CONFIG


@fuzz
@given(data=st.data())
def test_corpora(folder, data):
    valid = {
        "dataset": "text.txt", "tokenizer": "char", "cache_dir": "cache", "block_size": 4, "val_fraction": 0.1,
        "bpe_vocab_size": 300, "workers": 0, "progress": False, "dataset_weights": None,
    }  # fmt: skip
    with refused():
        load_corpus(**some(data, {**valid, "dataset": ["text.txt", "text.txt"], "dataset_weights": [1.0, 2.0]}))
    with refused():
        corpus = load_corpus(**some(data, valid))
        assert corpus.tokenizer.decode(corpus.train[:3]) == "abc"
