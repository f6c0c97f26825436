import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.cli.convert import adapters_tokenizer, main
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.notes import note
from jaxgpt.runs.weights import load_params, save_params
from jaxgpt.tokenizers import CharTokenizer, load_tokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer

CONFIG = GPTConfig(vocab_size=61, n_positions=16, n_embd=12, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)


def init(config):
    return GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "hf", CONFIG, init(CONFIG))
    return tmp_path / "hf"


def exit_code(*argv):
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in argv])
    return exit.value.code


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_there_and_back(folder, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back"
    main([str(folder), str(run), "--check"])
    assert capsys.readouterr().out.count(" pass ") == 9
    config, params = load_params(run)
    assert config == CONFIG
    main([str(run), str(back), "--check", "--report", str(tmp_path / "report.json")])
    assert load_pretrained(back)[0] == CONFIG
    assert_equal(load_pretrained(back)[1], load_pretrained(folder)[1])
    assert len(json.loads((tmp_path / "report.json").read_text())["checks"]) == 10


def test_tokenizer_goes_along(folder, tmp_path, capsys):
    CharTokenizer("abc").save(folder)
    main([str(folder), str(tmp_path / "run")])
    main([str(tmp_path / "run"), str(tmp_path / "back")])
    assert load_tokenizer(tmp_path / "back").encode("cab") == [2, 0, 1]
    assert "note" not in capsys.readouterr().out


def test_an_adapters_folders_own_tokenizer_and_template_travel(tmp_path, capsys):
    base, source = BPETokenizer.train(["to be or not to be"], 260), tmp_path / "adapters"
    source.mkdir()
    assert adapters_tokenizer(source, base) is base and base.chat_template is None
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert adapters_tokenizer(source, base).chat_template == "{{ messages }}"
    note.cache_clear()
    assert adapters_tokenizer(source, CharTokenizer("ab")).name == "char"
    assert "chat_template.jinja is left out" in capsys.readouterr().err
    base.with_special_tokens(["<|pad|>"]).save(source)
    assert adapters_tokenizer(source, base).vocab_size == base.vocab_size + 1


def test_gpt2_vocabulary_gets_gpt2_tokenizer(tmp_path, capsys):
    config = GPTConfig(n_positions=4, n_embd=2, n_layer=1, n_head=1)
    save_pretrained(tmp_path / "hf", config, init(config))
    main([str(tmp_path / "hf"), str(tmp_path / "run")])
    assert "its 50257 ids are taken as GPT-2's" in capsys.readouterr().err
    assert load_tokenizer(tmp_path / "run").encode("Hello world") == [15496, 995]


def test_padding_of_the_vocabulary_is_not_exported(tmp_path, capsys):
    save_params(tmp_path / "run", CONFIG, init(CONFIG))
    CharTokenizer("".join(map(chr, range(65, 65 + 57)))).save(tmp_path / "run")
    main([str(tmp_path / "run"), str(tmp_path / "hf"), "--check"])
    captured = capsys.readouterr()
    assert "note: ids 57 to 60 stand for no text; left out" in captured.err
    assert "FAIL" not in captured.out
    config, params = load_pretrained(tmp_path / "hf")
    assert config.vocab_size == 57
    np.testing.assert_array_equal(params["wte"]["embedding"], init(CONFIG)["wte"]["embedding"][:57])


def test_narrow_export(tmp_path):
    params = init(CONFIG)
    save_params(tmp_path / "run", CONFIG, params)
    main([str(tmp_path / "run"), str(tmp_path / "hf"), "--dtype", "bfloat16", "--check"])
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
    assert_equal(
        load_pretrained(tmp_path / "hf", dtype="bfloat16")[1], jax.tree.map(lambda x: x.astype("bfloat16"), params)
    )


def test_what_dest_holds_is_kept(folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("")
    assert exit_code(folder, run) == 2
    assert "not an empty folder" in capsys.readouterr().err
    main([str(folder), str(run), "--overwrite"])
    main([str(folder), str(run), "--overwrite"])
    assert (tmp_path / "run.old-1/precious").exists()
    assert (tmp_path / "run.old-2/checkpoints").exists()
    assert_equal(load_params(run)[1], load_pretrained(folder)[1])


def test_a_failed_conversion_moves_nothing(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("")
    (folder / "model.safetensors").write_bytes(b"")
    assert exit_code(folder, run, "--overwrite") == 2
    assert (run / "precious").exists()


def test_a_failed_check_is_a_failed_run(folder, tmp_path, monkeypatch, capsys):
    other = jax.tree.map(lambda leaf: leaf + 1, init(CONFIG))
    monkeypatch.setattr("jaxgpt.runs.weights.load_params", lambda run, dtype: (CONFIG, other))
    assert exit_code(folder, tmp_path / "run", "--check") == 1
    captured = capsys.readouterr()
    assert "the check failed: round trip; logits" in captured.err
    assert " FAIL " in captured.out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--report", "r.md"], "needs --check"),
        (["--check", "--report", "r.txt"], "must end in .json or .md"),
        (["--check", "--report", "nowhere/r.md"], "no folder nowhere"),
        (["--dtype", "int8"], "--dtype"),
        (["--allow_pickl"], "did you mean '--allow_pickle'"),
        (["--revision", "main"], "revision 'main'"),
        (["--checkpoint", "3"], "--checkpoint 3: SOURCE must be a run's folder, and"),
        (["--checkpoint", "newest"], "--checkpoint: 'newest' is not INT|best|last|none"),
    ],
)
def test_bad_flags(folder, tmp_path, capsys, flags, message):
    assert exit_code(folder, tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_adapters_need_the_model_that_they_adapt(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert exit_code(tmp_path, tmp_path / "run") == 2
    assert capsys.readouterr().err.startswith(f"error: --base is missing: {tmp_path} holds PEFT's adapters")


def test_a_checkpoint_is_chosen_by_its_step(tmp_path, capsys):
    params = init(CONFIG)
    save_params(tmp_path / "run", CONFIG, params)
    main([str(tmp_path / "run"), str(tmp_path / "hf"), "--checkpoint", "0"])
    assert_equal(load_pretrained(tmp_path / "hf")[1], params)
    assert exit_code(tmp_path / "run", tmp_path / "other", "--checkpoint", "3") == 2
    assert "has no checkpoint of step 3; there are [0]" in capsys.readouterr().err


def test_flags_for_the_other_direction(tmp_path, capsys):
    save_params(tmp_path / "run", CONFIG, init(CONFIG))
    assert exit_code(tmp_path / "run", tmp_path / "hf", "--allow_pickle") == 2
    assert "are for pretrained weights" in capsys.readouterr().err


def test_same_folder(folder, capsys):
    assert exit_code(folder, folder, "--overwrite") == 2
    assert "SOURCE and DEST are both" in capsys.readouterr().err


# The peak is measured above what the same commands take for a small model.
MEASURE = """
import sys
from pathlib import Path
from jaxgpt.cli.convert import adapters_tokenizer, main
def memory(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
small, large, out, size = sys.argv[1:]
main([small, out + "-small"])
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
main([large, out])
print((memory("VmHWM") - before) / int(size))
"""


@pytest.mark.slow
def test_weights_are_imported_without_a_second_copy_in_memory(folder, tmp_path):
    config = GPTConfig(vocab_size=5000, n_positions=512, n_embd=1024, n_layer=12, n_head=16)
    params = map_parameters(config, lambda p: jnp.ones(p.shape))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_pretrained(tmp_path / "large", config, params)
    places = [str(place) for place in (folder, tmp_path / "large", tmp_path / "imported")]
    command = [sys.executable, "-c", MEASURE, *places, str(size)]
    assert float(subprocess.check_output(command, text=True).splitlines()[-1]) < 1.3


class Hub:
    """A stand-in for `huggingface_hub.HfApi`: keeps what is uploaded; `me/public` is there already."""

    files: dict[str, bytes]

    def create_repo(self, name, *, private, exist_ok):
        Hub.files = {"private": str(private).encode()}

    def model_info(self, name):
        return SimpleNamespace(private=name != "me/public")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        Hub.files |= {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(repo_url=f"https://huggingface.co/{repo_id}")


def test_a_run_goes_to_the_hub_with_a_card_made_of_its_record(tmp_path, monkeypatch, capsys):
    run, secret = tmp_path / "run", tmp_path / "secret" / "mine.txt"
    flags = {
        "dataset": [str(secret), "hub:a/b"],
        "val_dataset": "hub:some/set@v1:dev",
        "learning_rate": 0.5,
        "out_dir": str(run),
        "log_interval": 7,
        "sample_tokens": 5,
    }
    data = {"train": "0123", "val_dataset": "v1sha:dev"}
    config = replace(CONFIG, eos_token_id=60, bos_token_id=60)
    save_params(run, config, init(config), stage="pretrain", flags=flags, data=data)
    rows = [{"step": step, "split": "val", "loss": 4 - step} for step in (0, 1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    CharTokenizer("".join(map(chr, range(65, 65 + 61)))).save(run)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    main([str(run), "hub:me/new", "--private"])
    assert capsys.readouterr().out == f"{run} is now at https://huggingface.co/me/new\n"
    assert Hub.files.keys() >= {"config.json", "model.safetensors", "README.md", "generation_config.json"}
    assert Hub.files["private"] == b"True" and json.loads(Hub.files["generation_config.json"])["eos_token_id"] == [60]
    card = Hub.files["README.md"].decode()
    for line in ("# me/new", "| dataset 1 | `mine.txt` |", "- a/b", "| revision of val_dataset | `v1sha:dev` |"):
        assert line in card.splitlines()
    assert "| learning_rate | `0.5` |" in card and "| 2 | 2 |" in card and str(tmp_path) not in card
    assert "log_interval" not in card and "sample_tokens" not in card, "they say nothing about the model"
    main([str(run), str(tmp_path / "local")])
    assert (tmp_path / "local/README.md").read_text() == card.replace("me/new", "local")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hub:me",), "hub:me: must be hub:OWNER/NAME"),
        (("hub:me/public", "--private"), "me/public is on the hub already, and public"),
        (("hub:me/new", "--adapters"), "DEST hub:me/new: SOURCE must be a run's folder, without --adapters"),
        (("hf", "--private"), "--private: only where DEST is hub:OWNER/NAME"),
    ],
)
def test_what_cannot_go_to_the_hub_is_refused_before_any_work(tmp_path, monkeypatch, capsys, words, message):
    save_params(tmp_path / "run", CONFIG, init(CONFIG))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert exit_code(tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err


def test_without_a_network_the_hub_is_one_line(tmp_path, monkeypatch, capsys):
    save_params(tmp_path / "run", CONFIG, init(CONFIG))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert exit_code(tmp_path / "run", "hub:me/new") == 2
    assert re.fullmatch(r"error: hub:me/new: cannot be written \(.*\n", capsys.readouterr().err)
