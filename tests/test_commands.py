import os
import shlex
from pathlib import Path

import pytest

from jaxgpt.cli import evaluate, generate, train
from jaxgpt.commands import as_called, called, next_command

ROOT = Path(__file__).parent.parent
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=2 --eval_iters=1 --max_iters=1".split()


def test_commands_have_the_names_that_their_user_types(monkeypatch):
    text = "train.py sft makes one, generate.py and convert_weights.py read it; a/train.py is a file"
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert as_called(text) == text and called("evaluate") == "python -m jaxgpt.evaluate"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/jaxgpt-train"])
    assert as_called(text) == (
        "jaxgpt-train sft makes one, jaxgpt-generate and jaxgpt-convert read it; a/train.py is a file"
    )
    assert Path(shlex.split(next_command("generate", "--init_from", "a b"))[0]).name == "jaxgpt-generate"


@pytest.mark.parametrize(("main", "name"), [(train.main, "train"), (evaluate.main, "evaluate")])
def test_help_names_the_command_that_was_typed(main, name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"/somewhere/bin/jaxgpt-{name}"])
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"usage: jaxgpt-{name} ") and ".py " not in out


@pytest.mark.parametrize("text", ["to be or not to be " * 50, "?!-\u2019" * 200], ids=["no line end", "no letters"])
def test_the_next_command_works_as_it_is_printed(text, tmp_path, monkeypatch, capsys):
    """By a model of characters without one for a line end, in a folder with a space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [os.path.relpath(ROOT / "train.py")])
    Path("text.txt").write_text(text)
    words = ["--dataset", "text.txt", "--cache_dir", "cache", "--tensorboard=false", "--sample_tokens=1"]
    train.main([*words, "--out_dir", "my run", *SMALL])
    line = capsys.readouterr().out.splitlines()[-1]
    python, script, *words = shlex.split(line.removeprefix("next: "))
    assert os.path.samefile(script, ROOT / "generate.py") and os.access(python, os.X_OK)
    generate.main([*words, "--max_new_tokens", "2"])
    assert len(capsys.readouterr().out.rstrip("\n")) == 3
