"""docs/guide.md: the code that it names is there, and its commands run, one after another, and show something."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.cli import convert, evaluate, explore, generate, train

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(\w+)` in \[([\w/.]+)\]\(\.\./([\w/.]+)\)", GUIDE)
COMMANDS = [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.S)]
MAINS = {
    "train.py": train.main,
    "generate.py": generate.main,
    "convert_weights.py": convert.main,
    "jaxgpt.evaluate": evaluate.main,
    "jaxgpt.explore": explore.main,
}
CONCEPTS = """
tokens embeddings positions attention-stages multi-head residual-stream layer-norm feed-forward block causal-mask
parameter-count init tying training-loop schedule clipping loss-curves mixed-precision kv-cache flash-attention
scaling-laws loss optimizer dropout gradient-accumulation checkpoints several-devices speculative kl-divergence
weight-mapping verification classification sft reward ppo dpo lora quantization
""".split()


@pytest.mark.parametrize(("name", "shown", "file"), NAMED)
def test_the_code_that_the_guide_names_is_there(name, shown, file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.ClassDef
    assert shown == file and name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_no_concept_is_left_out():
    titles = " ".join(re.findall(r"^\*\*(.*?)\*\*", GUIDE, re.M)).lower()
    assert [concept for concept in CONCEPTS if concept.replace("-", " ") not in titles.replace("-", " ")] == []
    assert len(COMMANDS) == GUIDE.count("\n**")


@pytest.mark.slow
def test_every_command_of_the_guide_runs_and_shows_something(tmp_path, monkeypatch, capfd, unchecked_types):
    pytest.importorskip("torch", reason="PyTorch is needed to verify against it")
    for folder in ("docs", "jaxgpt"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, command in enumerate(COMMANDS):
        if number == 1:  # the curve of the first run is drawn; those of the others take half a second each
            monkeypatch.setattr(jaxgpt.train, "plot", lambda folder: folder / "curve.png")
        python, script, *words = shlex.split(command)
        assert python == ".venv/bin/python"
        if script == "-c":
            exec(words[0], {})
        else:
            script = words.pop(0) if script == "-m" else script
            try:
                MAINS[script](words)
            except SystemExit as end:
                assert not end.code, command
        made = re.search(r"out-guide/[\w.]+\.(png|html)", command)
        assert Path(made[0]).stat().st_size if made else capfd.readouterr().out.strip(), command
