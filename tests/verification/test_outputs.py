import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxgpt.verification.outputs as verify_module
from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.tokenizers import load_tokenizer
from jaxgpt.verification.outputs import check_story, table, verify, write_report

CONFIG = GPTConfig(
    vocab_size=61, n_positions=32, n_embd=12, n_layer=2, n_head=2, initializer_range=0.3, bos_token_id=None,
    eos_token_id=None,
)  # fmt: skip


def init(config):
    return GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def results(checks):
    return [check.result for check in checks]


ALL_PASS = ["pass"] * 7 + ["not applicable"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_good_conversion_passes(tmp_path, tied, dtype):
    config = replace(CONFIG, tie_word_embeddings=tied)
    save_pretrained(tmp_path, config, init(config))
    assert results(verify(tmp_path, *load_pretrained(tmp_path, dtype=dtype))) == ALL_PASS


def test_without_biases(tmp_path):
    config = replace(CONFIG, bias=False)
    params = init(config)
    save_pretrained(tmp_path, config, params)
    assert results(verify(tmp_path, config, params)) == ALL_PASS


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_scores(tmp_path, tied):
    config = replace(CONFIG, labels=("ham", "spam"), tie_word_embeddings=tied)
    save_pretrained(tmp_path, config, init(config))
    config, params = load_pretrained(tmp_path)
    assert results(verify(tmp_path, config, params)) == ["pass", *ALL_PASS]
    params["score"] = params["score"][::-1]
    failed = [check.name for check in verify(tmp_path, config, params) if check.result == "FAIL"]
    assert failed == ["round trip", "scores against PyTorch"]


def test_names_that_transformers_does_not_read(tmp_path):
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert results(verify(tmp_path, *load_pretrained(tmp_path))) == ALL_PASS


def test_a_transposed_square_matrix_is_found(tmp_path):
    """The mistake that passes every check of shapes."""
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    config, params = load_pretrained(tmp_path)
    params["h_1"]["attn"]["c_proj"]["kernel"] = params["h_1"]["attn"]["c_proj"]["kernel"].T
    checks = {check.name: check for check in verify(tmp_path, config, params)}
    assert checks["round trip"].measured == "changed: h.1.attn.c_proj.weight"
    for name in ("round trip", "logits against PyTorch", "KL divergence from PyTorch"):
        assert checks[name].result == "FAIL"
    assert checks["parameters"].result == "pass"


def test_another_activation_is_found(tmp_path):
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    config, params = load_pretrained(tmp_path)
    checks = verify(tmp_path, replace(config, activation_function="relu"), params)
    assert results(checks) == ["pass"] * 3 + ["FAIL"] * 4 + ["not applicable"]


def test_the_published_continuation_is_for_the_published_model(monkeypatch):
    wte = np.zeros((50257, 768), np.float32)
    params = {"wte": {"embedding": wte}}
    tokenizer = load_tokenizer("gpt2")
    assert check_story(CONFIG, params, tokenizer).measured == "the model is not OpenAI's gpt2"
    wte[0, :3] = verify_module.GPT2_TABLE
    assert check_story(CONFIG, params, None).measured == "there is no tokenizer"

    def predict(offset):
        def logits(config, params, rows):
            return np.arange(50257) == (np.roll(rows, -1, axis=1) + offset)[..., None]

        monkeypatch.setattr(verify_module, "_logits", logits)
        return check_story(CONFIG, params, tokenizer)

    assert predict(0).result == "pass"
    assert predict(1).result == "FAIL"
    assert predict(1).measured == "0 of 25 ids equal"


def test_report(tmp_path):
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    checks = verify(tmp_path, *load_pretrained(tmp_path))
    write_report(tmp_path / "report.md", checks)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert len(lines) == 10 and len({len(line) for line in lines}) == 1
    assert {line.count("|") for line in lines} == {5}
    assert "\n".join(lines) + "\n" == table(checks)
    write_report(tmp_path / "report.json", checks)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["result"] for line in report["checks"]] == ALL_PASS


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_needs_pytorch(tmp_path, monkeypatch, missing):
    save_pretrained(tmp_path, CONFIG, init(CONFIG))
    loaded = load_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=f"{missing} is missing"):
        verify(tmp_path, *loaded)
