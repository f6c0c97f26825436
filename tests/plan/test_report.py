"""`train.py --plan`: what it prints agrees with itself, and mistakes are one line before anything else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.cli.train import main
from jaxgpt.devices import target_devices
from jaxgpt.errors import UsageError
from jaxgpt.plan import report
from jaxgpt.stages.pretrain import PretrainConfig

FLAGS = ("--preset", "gpt2", "--dropout", "0", "--batch_size", "64", "--max_iters", "1000")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "why_no_compiler", lambda target: "no compiler here")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main([*FLAGS, *words])
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


def test_the_plan_agrees_with_itself(capsys):
    before = target_devices()
    text = printed(capsys, "--plan", "h100:8", "--price", "20")
    assert target_devices() == before
    step, speed = number(r"step +([\d.,]+) ms", text), number(r"throughput +([\d.,]+) tokens", text)
    assert speed == pytest.approx(64 * 1024 / (step / 1e3), rel=1e-3)
    best = re.search(r"^best: (.*)$", text, re.MULTILINE)
    assert best is not None and best[1] == re.findall(r"MFU\n(.*?)  ", text)[0]
    sizes = re.search(r"memory a device +([\d.]+) of 55.88 GiB: (.*)", text)
    assert sizes is not None
    parts = sum(float(part.split()[-1]) for part in sizes[2].split(", "))
    assert parts == pytest.approx(float(sizes[1]), abs=0.03)
    optimum = number(r"Chinchilla's optimum +([\d,]+) tokens", text)
    hours, cost = number(r"optimum .* ([\d.,]+) hours at best", text), number(r"optimum .* costing ([\d.,]+)", text)
    assert optimum == 20 * 124_439_808
    assert hours == pytest.approx(optimum / speed / 3600, abs=0.006) and cost == pytest.approx(20 * hours, abs=0.11)
    assert "compiled: no" in text and "no compiler here" in text


def test_the_step_is_the_targets_not_this_machines(capsys):
    assert "bfloat16" in (text := printed(capsys, "--plan", "v5e:4x4")) and "attention: Pallas's kernel" in text
    assert "attention: cuDNN's kernel" in printed(capsys, "--plan", "h100:8")
    assert "float32" in printed(capsys, "--plan", "h100:8", "--dtype", "float32")


def test_a_mesh_that_is_asked_for_is_planned(capsys):
    text = printed(capsys, "--plan", "h100:2x8", "--fsdp", "4", "--tensor", "2")
    assert "as asked: data 2, fsdp 4, tensor 2" in text and "50 GB/s to other nodes" in text
    assert "as asked: data 8\n" in printed(capsys, "--plan", "h100:8", "--fsdp", "1", "--tensor", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "v5e:5x5"], "v5e has no topology 5x5; nearest are v5e:4x4 and v5e:4x8"),
        (["--plan", "h100:8", "--tensor", "5"], "tensor 5 does not divide 8 devices"),
        (["--plan", "h100:8", "--block_size", "2048", "--init_from", "gpt2"], "block_size 2048 is longer"),
        (["--price", "3"], "--price 3.0: only with --plan"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, words: list[str], message: str):
    flags = FLAGS if "--init_from" not in words else FLAGS[2:]
    with pytest.raises(SystemExit) as stopped:
        main([*flags, *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_a_target_is_refused_before_jax_is_loaded():
    code = (
        "import sys\nfrom jaxgpt.stages.pretrain import PretrainConfig\n"
        "try:\n    PretrainConfig(plan='v5e:5x5')\n"
        "except Exception as error:\n    sys.exit('jax' in sys.modules or type(error).__name__ != 'UsageError')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    with pytest.raises(UsageError, match="--plan"):
        PretrainConfig(plan="x")
