"""What only some systems have is asked for where it is used, so that the package starts on all."""

import subprocess
import sys
from pathlib import Path

import jaxgpt

ROOT = Path(jaxgpt.__file__).parent
# What Windows lacks, taken away before anything is imported.
WINDOWS = """
import os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGXCPU", "SIGPROF", "pthread_sigmask", "setitimer"):
    delattr(signal, name)
for name in ("fork", "sysconf"):
    delattr(os, name)
"""


def without(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WINDOWS + code, *map(str, argv)]
    return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)


def test_no_module_needs_what_windows_lacks():
    names = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in sorted(ROOT.rglob("*.py"))]
    modules = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    result = without("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *modules)
    assert result.returncode == 0, result.stderr


def test_a_run_is_made_and_speaks_without_them(tmp_path: Path):
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    words = "--n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=2 --max_iters=2 --eval_iters=1"
    flags = [*words.split(), "--sample_tokens=4", "--tensorboard=false", f"--cache_dir={tmp_path / 'cache'}"]
    code = "from jaxgpt.cli import entry\nentry.{}()"
    made = without(code.format("train"), f"--dataset={tmp_path / 'text.txt'}", f"--out_dir={tmp_path / 'out'}", *flags)
    assert made.returncode == 0 and (tmp_path / "out" / "curve.png").exists(), made.stderr
    assert "can't be locked" in made.stderr
    spoken = without(code.format("generate"), f"--init_from={tmp_path / 'out'}", "--start=To", "--max_new_tokens=3")
    assert spoken.returncode == 0 and spoken.stdout.startswith("To"), spoken.stderr
