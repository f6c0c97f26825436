"""The wheel: what is in it, and that its commands work wherever it is installed."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from jaxgpt.command_line import RECIPES, parse
from jaxgpt.errors import UsageError
from jaxgpt.stages.pretrain import PretrainConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    path = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [file] = path.glob("*.whl")
    return file


def test_a_wheel_has_what_the_package_needs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = subprocess.run(["git", "ls-files", "jaxgpt"], cwd=ROOT, capture_output=True, text=True)
    inside = {name for name in names if ".dist-info/" not in name}
    assert {"jaxgpt/py.typed", "jaxgpt/configs/shakespeare_char.toml", "jaxgpt/data/plays/hamlet.txt"} <= inside
    assert tracked.returncode or {name for name in tracked.stdout.split() if (ROOT / name).exists()} <= inside
    assert all(name.startswith("jaxgpt/") for name in inside)
    assert sum(".dist-info/licenses/" in name for name in names) >= 2


@pytest.mark.slow
def test_an_installed_wheel_works_elsewhere(wheel, tmp_path):
    """In an environment that has it alone, with this one's other packages behind it."""
    place, folder = tmp_path / "venv", tmp_path / "elsewhere"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    [site] = place.glob("lib/python*/site-packages")
    install = ["-m", "pip", "--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    (site / "behind.pth").write_text(sysconfig.get_path("purelib"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(name: str, *words: str) -> str:
        command = [str(place / "bin" / f"jaxgpt-{name}"), *words]
        result = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    for name in ("train", "generate", "convert"):
        assert run(name, "--version") == f"jaxgpt {importlib.metadata.version('jaxgpt')}\n"
        assert "examples:" in run(name, "--help")
    assert "parameters" in run("train", "--config", "shakespeare_char", "--dry_run", "--dataset", "plays")
    where = [str(place / "bin" / "python"), "-c", "import jaxgpt; print(jaxgpt.__file__)"]
    found = subprocess.run(where, cwd=folder, env=clean, capture_output=True, text=True).stdout
    assert found.startswith(str(place))


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.toml")))
def test_recipes_are_found_by_name(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_path = parse(PretrainConfig, ["--config", str(RECIPES / f"{recipe}.toml")], prog="test", description="")
    assert parse(PretrainConfig, ["--config", recipe], prog="test", description="") == by_path


def test_a_config_that_is_neither_is_refused():
    with pytest.raises(UsageError, match="one of gpt2_openwebtext, shakespeare_char; did you mean 'shakespeare_char'"):
        parse(PretrainConfig, ["--config", "shakespear_char"], prog="test", description="")
