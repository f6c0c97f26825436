"""Who may import whom: one way through the package; and what must not wait for JAX."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgpt

ROOT = Path(jaxgpt.__file__).parent
# Single files beside the rooms: all may use them, and they use only the plainest of one another.
LEAVES = {file.stem for file in ROOT.glob("*.py")} - {"__init__", "mesh"}
# Each room and what it may look into.
ROOMS = {
    "tokenizers": set(),
    "model": set(),
    "data": {"tokenizers"},
    "chat": {"tokenizers", "data"},
    "mesh": {"model"},
    "objectives": {"data", "chat", "model"},
    "decode": {"tokenizers", "chat", "model"},
    "hf": {"tokenizers", "model"},
    "inspect": {"tokenizers", "data", "model", "objectives", "decode", "train"},
    "runs": {"tokenizers", "model", "hf"},
    "train": {"data", "model", "objectives", "hf", "mesh", "runs"},
    "plan": {"data", "mesh", "model", "objectives", "train"},
    "verification": {"tokenizers", "data", "model", "objectives", "hf", "train"},
    "evaluate": {"tokenizers", "data", "chat", "mesh", "model", "objectives", "decode", "hf", "runs", "train"},
    "explore": {"tokenizers", "model", "decode", "inspect", "runs", "train"},
    "rl": {"tokenizers", "data", "chat", "model", "objectives", "decode", "runs", "train"},
    "stages": {"tokenizers", "data", "chat", "model", "objectives", "decode", "hf", "mesh", "runs", "train"}
    | {"evaluate", "explore", "plan", "rl"},
    "cli": {"tokenizers", "data", "chat", "model", "decode", "hf", "mesh", "runs", "train", "verification"}
    | {"evaluate", "explore", "stages"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return the rooms of this package that a file imports from, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("jaxgpt.")}


def test_every_room_has_its_place():
    found = {path.stem for path in ROOT.iterdir() if path.name not in ("__pycache__", "configs", "py.typed")}
    assert found == {*ROOMS, *LEAVES, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path):
    here = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if here == "__init__" or file.name == "__main__.py":  # the package's public names; a command's door
        return
    plain = {"checks", "commands", "devices", "errors", "files", "flags", "progress", "signals"}
    allowed = plain if here in LEAVES else {here, *LEAVES, *ROOMS[here]}
    assert imported(file) <= allowed


def test_help_does_not_wait_for_numpy():
    code = (
        "import sys, jaxgpt.cli.train, jaxgpt.cli.generate, jaxgpt.cli.convert, jaxgpt.cli.evaluate\n"
        "import jaxgpt.cli.explore, jaxgpt.cli.harness\n"
        "for stage in ('pretrain', 'classify', 'sft', 'dpo', 'reward', 'ppo'):\n"
        "    jaxgpt.stages.load_stage(stage)\n"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent).returncode == 0


def test_flags_tokenizers_and_help_do_not_wait_for_jax():
    code = (
        "import sys, jaxgpt, jaxgpt.cli.train, jaxgpt.cli.generate, jaxgpt.cli.convert, jaxgpt.cli.evaluate\n"
        "import jaxgpt.flags, jaxgpt.command_line\n"
        "import jaxgpt.data.corpus, jaxgpt.chat.reading, jaxgpt.model.lora_config\n"
        "import jaxgpt.rl.config, jaxgpt.rl.reward_function\n"
        "import jaxgpt.stages.classify, jaxgpt.stages.dpo, jaxgpt.stages.ppo, jaxgpt.stages.sft\n"
        "sys.exit(' '.join(sorted({'jax', 'jaxlib', 'flax', 'optax', 'torch'} & set(sys.modules))) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, f"imported on the way: {result.stderr}"


@pytest.mark.parametrize("name", jaxgpt.__all__)
def test_public_names_are_there(name: str):
    assert getattr(jaxgpt, name).__name__ == name


def test_one_import_is_enough():
    """Rooms and their modules are there on first use, and `dir` tells what is there."""
    code = (
        "import jaxgpt\n"
        "assert jaxgpt.tokenizers.load_tokenizer is jaxgpt.load_tokenizer\n"
        "assert jaxgpt.decode.sampling_config.Sampling and jaxgpt.data.batches.Batch\n"
        "assert jaxgpt.runs.weights.load_params\n"
        "assert {*jaxgpt.__all__, 'data', 'decode', 'train', '__version__'} <= set(dir(jaxgpt))\n"
        "assert 'load_params' not in dir(jaxgpt) and 'weights' in dir(jaxgpt.runs)\n"
        "assert jaxgpt.__version__.count('.') == 2"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stderr


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GTP"):
        _ = jaxgpt.GTP


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_warnings_go_to_standard_error(file: Path):
    """What goes to standard output may be a model's text."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and node.args:
            warns = ast.unparse(node.args[0]).lstrip("f'\"").startswith("warning")
            assert not warns or "file=sys.stderr" in ast.unparse(node), f"line {node.lineno}"


@pytest.mark.parametrize("room", sorted(room for room in ROOMS if room != "mesh"))
def test_no_public_name_is_a_modules_name_too(room: str):
    """An imported module takes the place of what its package gives on first use."""
    found = importlib.import_module(f"jaxgpt.{room}")
    assert {*getattr(found, "__all__", ())}.isdisjoint(file.stem for file in (ROOT / room).glob("*.py"))


def test_every_module_says_where_it_is_tested():
    """In a file of the same name, or as tests/README.md says."""
    tests = Path(__file__).parent
    rows = (tests / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [re.findall(r"`([\w/]+\.py)`", row) for row in rows if row.startswith("| `")]
    elsewhere = {module: files for module, *files in cells}
    for module, files in elsewhere.items():
        assert (ROOT / module).is_file() and files and all((tests / file).is_file() for file in files), module
    for file in FILES:
        module = file.relative_to(ROOT)
        alike = tests / module.parent / f"test_{module.name}"
        assert file.stem.startswith("__") or alike.is_file() or str(module) in elsewhere, f"{module}: tested nowhere"
        assert not (alike.is_file() and str(module) in elsewhere), f"{module}: has a test of its own"
