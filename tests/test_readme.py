import re
import shlex
from pathlib import Path

import pytest

from jaxgpt.cli.convert import Options as ConvertOptions
from jaxgpt.cli.evaluate import Options as EvaluateOptions
from jaxgpt.cli.explore import Options as ExploreOptions
from jaxgpt.cli.generate import Options as GenerateOptions
from jaxgpt.command_line import parse
from jaxgpt.stages import STAGES, load_stage
from jaxgpt.stages.pretrain import PretrainConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pretraining_in_ten_lines_learns(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    block = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "make_step" in code)
    exec(block, {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < min(losses[0] - 0.1, 2.6)


def test_every_file_that_the_readme_names_exists():
    root = Path(__file__).parents[1]
    named = re.findall(r"`((?:jaxgpt|configs|benchmarks|docs|recipes)/[\w./]*)`|\]\((docs/[\w./]+)\)", README)
    missing = [path for pair in named for path in pair if path and not (root / path).exists()]
    assert not missing


FLAGS = {
    "train.py": PretrainConfig,
    "generate.py": GenerateOptions,
    "convert_weights.py": ConvertOptions,
    "-m jaxgpt.evaluate": EvaluateOptions,
    "-m jaxgpt.explore": ExploreOptions,
}
COMMANDS = re.findall(r"^\.venv/bin/python (\w+\.py|-m jaxgpt\.\w+) ([^#\n]*)", README, re.M)


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_every_command_that_the_readme_shows_has_right_flags(script, arguments):
    words = shlex.split(arguments)
    record = load_stage(words.pop(0)).Flags if script == "train.py" and words[0] in STAGES else FLAGS[script]
    parse(record, words, prog=script, description="")
