"""The Makefile: an environment that was only half made is no obstacle, and an old Python is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As on Debian without python3-venv: the folder and its Python are there, and then there is no pip.
HALF = """#!/bin/sh
[ "$1" != -c ] || exit 0
"{python}" "$@" --without-pip
rm .venv/bin/activate*
echo "ensurepip is not available" >&2
exit 1
"""
# Quick, and without a network: what installing needs is not there, but the environment is whole.
WHOLE = """#!/bin/sh
[ "$1" = -c ] || exec "{python}" "$@" --without-pip
"""
OLD = """#!/bin/sh
exec "{python}" -c "import sys; sys.version_info = (3, 9, 6); exec(sys.argv[1])" "$2"
"""


@pytest.fixture
def make(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for file in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / file, tmp_path)
    for name, script in (("half", HALF), ("whole", WHOLE), ("old", OLD)):
        (tmp_path / name).write_text(script.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "train", *words], cwd=tmp_path, env=env, capture_output=True, text=True)

    return make


def test_an_environment_that_was_half_made_is_made_anew(tmp_path, make):
    def makes_environment() -> bool:
        return "-m venv" in make("--dry-run").stdout

    assert makes_environment()
    failed = make("PYTHON=./half")
    assert failed.returncode == 2 and "ensurepip" in failed.stderr and (tmp_path / ".venv" / "bin" / "python").exists()
    assert makes_environment(), "the next call tries again"
    make("PYTHON=./whole")
    assert not makes_environment()


def test_a_python_that_is_too_old_is_named_and_leaves_no_environment(tmp_path, make):
    failed = make("PYTHON=./old")
    assert failed.returncode == 2 and "Python 3.9 is too old" in failed.stderr
    assert not (tmp_path / ".venv").exists()
