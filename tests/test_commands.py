import contextlib
import io
import os
import shlex
from pathlib import Path

import pytest

from jaxgpt.cli import convert, evaluate, explore, generate, train
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


@pytest.fixture(
    scope="module", params=["to be or not to be " * 50, "?!-\u2019" * 200], ids=["no line end", "no letters"]
)
def trained(request, tmp_path_factory) -> tuple[Path, str]:
    """A folder with a run, whose name has a space, of a model of characters, and the last line that the run printed."""
    path, printed = tmp_path_factory.mktemp("trained"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(path)
        patch.setattr("sys.argv", [os.path.relpath(ROOT / "train.py")])
        Path("text.txt").write_text(request.param)
        words = ["--dataset", "text.txt", "--cache_dir", "cache", "--tensorboard=false", "--sample_tokens=1"]
        train.main([*words, "--out_dir", "my run", *SMALL])
    return path, printed.getvalue().splitlines()[-1]


def test_the_next_command_works_as_it_is_printed(trained, monkeypatch, capsys):
    path, line = trained
    monkeypatch.chdir(path)
    python, script, *words = shlex.split(line.removeprefix("next: "))
    assert os.path.samefile(script, ROOT / "generate.py") and os.access(python, os.X_OK)
    generate.main([*words, "--max_new_tokens", "2"])
    assert len(capsys.readouterr().out.rstrip("\n")) == 3


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (train.main, "--out_dir new/er --dataset short.txt --cache_dir cache"),
        (train.main, "--out_dir empty --dataset none.txt --cache_dir cache"),
        (train.main, "sft --base 'my run' --out_dir new --dataset bad.jsonl"),
        (train.main, "dpo --base 'my run' --out_dir new --dataset bad.jsonl"),
        (generate.main, "--init_from 'my run' --start \u00c4"),
        (convert.main, "'my run' new --adapters"),
        (convert.main, "empty new"),
        (convert.main, "'my run' new --checkpoint 77"),
        (explore.main, "'my run' --text \u00c4\u00c4 --out new.html"),
        (evaluate.main, "'my run' --dataset bad.jsonl --json new.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failed_command_leaves_nothing_behind(trained, main, line, monkeypatch, capsys):
    path, _ = trained
    monkeypatch.chdir(path)
    Path("short.txt").write_text("to be")
    Path("bad.jsonl").write_text('{"foo": 1}\n')
    Path("empty").mkdir(exist_ok=True)
    before = {file for file in path.rglob("*") if "cache" not in file.parts}
    with pytest.raises(SystemExit, match="2"):
        main(shlex.split(line))
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert {file for file in path.rglob("*") if "cache" not in file.parts} == before
