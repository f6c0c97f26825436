"""Steps compiled for devices that aren't here, where the compiler is installed."""

import re

import pytest

from jaxgpt.cli.train import main
from jaxgpt.devices import compute_dtype, describe_devices, platform, target_devices
from jaxgpt.model.attention_kernels import cudnn_works
from jaxgpt.plan.compiled import planning_for, why_no_compiler
from jaxgpt.plan.targets import read_target

GPT2 = ("--preset", "gpt2", "--dropout", "0", "--batch_size", "64")


def missing(target: str) -> pytest.MarkDecorator:
    why = why_no_compiler(read_target(target))
    return pytest.mark.skipif(bool(why), reason=why or "nothing")


@pytest.mark.parametrize(("name", "where"), [("h100:8", "gpu"), ("v5e:2x4", "tpu")])
def test_everything_is_asked_of_the_target(name: str, where: str):
    target, here = read_target(name), target_devices()
    with planning_for(target, target.stand_ins()):
        assert (platform(), compute_dtype("auto")) == (where, "bfloat16")
        assert describe_devices() == f"8 x {target.chip.kind}"
        assert cudnn_works(1024, 64, False) == (where == "gpu")
    assert (target_devices(), platform(), compute_dtype("auto")) == (here, "cpu", "float32")
    assert not cudnn_works(1024, 64, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        pytest.param("v5e:2x4", ("--fsdp", "8", "--remat"), marks=missing("v5e:2x4")),
        pytest.param("v5e:4x4", ("--fsdp", "16"), marks=missing("v5e:4x4")),
        pytest.param("h100:8", ("--fsdp", "8", "--remat"), marks=missing("h100:8")),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_gpt2_compiles_and_takes_what_was_computed(capsys, name: str, flags: tuple[str, ...]):
    main([*GPT2, *flags, "--plan", name])
    text = capsys.readouterr().out
    found = re.search(
        r"compiled: in .*\n  memory a device +([\d.]+) of .*, fits: state and batch ([\d.]+), .*; ([\d.]+) as computed",
        text,
    )
    assert found is not None, text
    compiled, state, computed = map(float, found.groups())
    assert compiled == pytest.approx(computed, rel=0.15)
    assert compiled - state == pytest.approx(computed - state, rel=0.15), "temporary memory alone"
    sent = [float(size.replace(",", "")) for size in re.findall(r"sent a device +([\d,]+) MiB", text)]
    assert sent[1] <= 1.05 * sent[0]
