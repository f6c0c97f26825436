import dataclasses
import importlib.metadata
import itertools
import json
import re
import typing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.checks import shown
from jaxgpt.cli import convert, generate, train
from jaxgpt.command_line import command, parse
from jaxgpt.errors import RunError, UsageError, did_you_mean
from jaxgpt.flags import Name, PathName, Whole, flag, kinds
from jaxgpt.stages import STAGES, load_stage
from jaxgpt.stages.ppo import PPOStageConfig
from jaxgpt.stages.pretrain import PretrainConfig
from recipes.align import __main__ as align


@dataclasses.dataclass(frozen=True)
class Flags:
    source: str = flag(help="what to read", positional=True)
    learning_rate: float = flag(1e-3, "peak")
    n_layer: int | None = flag(None, "layers")
    mode: Literal["fast", "slow"] = flag("fast", "how")
    bias: bool = flag(False, "biases")


def read(*argv: str) -> Flags:
    return parse(Flags, argv, prog="test", description="")


def test_dashes_underscores_spaces_and_equals_mean_the_same():
    expected = Flags("x", learning_rate=0.5, n_layer=3, mode="slow", bias=True)
    assert read("x", "--learning-rate", "0.5", "--n_layer=3", "--mode", "slow", "--bias") == expected
    assert read("--bias", "x").bias and not read("x", "--bias=false").bias
    assert read("--bias=True", "--learning_rate=0.5", "--n-layer", "3", "--mode=slow", "x") == expected


def test_none_is_off():
    assert read("x", "--n_layer", "none").n_layer is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--learnig_rate", "1"], "unknown flag --learnig_rate; did you mean '--learning_rate'?"),
        (["x", "--learning_rate", "fast"], "--learning_rate: 'fast' is not FLOAT"),
        (["x", "--n_layer", "1.5"], "--n_layer: '1.5' is not INT|none"),
        (["x", "--mode", "slw"], "--mode: 'slw' is not fast|slow; did you mean 'slow'?"),
        (["x", "y"], "unexpected argument 'y'; see --help"),
        ([], "SOURCE is missing; see --help"),
        (["x", "--config", "no.json"], "--config no.json: No such file or directory"),
    ],
)
def test_a_bad_flag_is_one_line_that_names_it(argv, message):
    with pytest.raises(UsageError) as caught:
        read(*argv)
    assert str(caught.value) == message


def test_a_file_gives_flags_and_flags_win(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"learning-rate": 0.25, "n_layer": None, "bias": True}))
    (tmp_path / "c.toml").write_text('source = "y"\nmode = "slow"\n')
    assert read("x", "--config", f"{tmp_path}/c.json", "--learning_rate", "2") == Flags("x", 2.0, None, "fast", True)
    assert read("--config", f"{tmp_path}/c.toml") == Flags("y", mode="slow")


@dataclasses.dataclass(frozen=True)
class Several:
    stop: tuple[str, ...] | None = flag(None, "texts")


def test_a_flag_may_have_several_values_also_in_a_file(tmp_path):
    def stop(*argv: str) -> tuple[str, ...] | None:
        return parse(Several, argv, prog="test", description="").stop

    assert stop("--stop", "a", "") == ("a", "") and stop("--stop=a") == ("a",) and stop("--stop", "none") is None
    for text, expected in (('["a", "b"]', ("a", "b")), ('"a"', ("a",)), ("null", None)):
        (tmp_path / "c.json").write_text(f'{{"stop": {text}}}')
        assert stop("--config", f"{tmp_path}/c.json") == expected
    with pytest.raises(UsageError, match="--stop: none is no value beside others"):
        stop("--stop", "none", "a")


def test_a_runs_own_record_is_a_file_of_flags(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"n_layer": 7}, "model": {}}))
    assert read("x", "--config", f"{tmp_path}/config.json").n_layer == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"mod": "slow"}', "unknown key 'mod'; did you mean 'mode'?"),
        ('{"n_layer": "two"}', "n_layer: 'two' is not INT|none"),
        ('{"n_layer": [2]}', "n_layer is [2]; it must be INT|none"),
        ("[1]", "holds a list; it must be a table of flags"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_file_names_itself_and_the_key(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--config") as caught:
        read("x", "--config", str(path))
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(("error", "code"), [(UsageError("a is 1"), 2), (RunError("disk full"), 1)])
def test_errors_become_one_line_and_an_exit_code(capsys, error, code):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


@dataclasses.dataclass(frozen=True)
class Values:
    """A flag of each kind."""

    start: str = flag("", "a text")
    out_dir: PathName = flag("out", "a path")
    wandb: Name | None = flag(None, "a name")
    compare: tuple[PathName, ...] | None = flag(None, "paths")
    stop: tuple[str, ...] | None = flag(None, "texts")
    batch_size: int = flag(8, "a number")
    bias: bool | None = flag(None, "yes or no")


def values(*argv: str) -> Values:
    return parse(Values, argv, prog="test", description="")


def refused(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        values(*argv)
    return str(caught.value)


NAMES = {"help", "config", *(field.name for field in dataclasses.fields(Values))}


@given(text=st.text(max_size=12) | st.text("-=a b", max_size=8) | st.from_regex(r"--[a-z]-[a-z ]{0,3}", fullmatch=True))
def test_a_value_keeps_every_character(text: str):
    assert values(f"--start={text}").start == text
    if text.lower() != "none":
        assert values("--stop", "x", f"--stop={text}").stop == ("x", text)
    if text.startswith("-") and text not in ("-h", "--") and not did_you_mean(text.removeprefix("--"), NAMES):
        assert values("--start", text, "--bias") == Values(start=text, bias=True)
        assert values("--batch-size=3", "--stop", text, text).stop == (text, text)


def test_a_flag_is_no_value_even_if_it_is_misspelt():
    assert refused("--start", "--bias") == "--start: a value is missing; if --bias is the value, write --start=--bias"
    assert "--stop: a value is missing" in refused("--stop", "--out_dri", "x")
    assert "--out_dir: a value is missing" in refused("--out_dir", "--eval_only")
    assert refused("--start") == "--start: a value is missing"


def test_a_flag_given_again_adds_values_or_is_refused(tmp_path):
    assert values("--stop", "a", "b", "--bias", "--stop=c", "--stop", "d").stop == ("a", "b", "c", "d")
    for twice in (["--batch_size=1", "--batch-size", "1"], ["--bias", "--bias=false"], ["--out_dir=a", "--out_dir=b"]):
        assert refused(*twice) == f"{twice[0].partition('=')[0]} is given twice; it takes one value"
    (tmp_path / "a.json").write_text('{"batch_size": 1, "batch_size": 2}')
    (tmp_path / "b.json").write_text('{"batch_size": 1, "batch-size": 2}')
    assert "'batch_size' stands there twice" in refused("--config", f"{tmp_path}/a.json")
    assert "batch_size is given twice" in refused("--config", f"{tmp_path}/b.json")
    assert "--config is given twice" in refused("--config", f"{tmp_path}/a.json", "--config=x")


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("True", True), ("0", False), ("1", True), ("none", None)]
)
def test_a_boolean_takes_its_value_in_the_next_word_too(word: str, value: bool | None):
    assert values("--bias", word, "--batch_size", "3") == values(f"--bias={word}", "--batch_size=3")
    assert values("--bias", word).bias is value
    assert values("--bias").bias is True and values("--bias", "--batch_size=3").bias is True
    assert refused("--bias", "no") == "unexpected argument 'no'; see --help"


def test_the_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.json").write_text('{"out_dir": "~/runs", "compare": ["~/a", "b~"], "start": "~/x"}')
    expected = Values(out_dir=f"{tmp_path}/runs", compare=(f"{tmp_path}/a", "b~"), start="~/x")
    assert values("--config", "~/c.json") == expected
    assert values("--out_dir=~/runs", "--compare", "~/a", "b~", "--start", "~/x") == expected
    assert values("--out_dir", "~").out_dir == str(tmp_path)
    assert "--out_dir ~nobody-at-all/x: there is no such home folder" in refused("--out_dir=~nobody-at-all/x")


@pytest.mark.parametrize(
    "argv", [["--out_dir="], ["--out_dir", ""], ["--wandb="], ["--compare", "a", ""], ["--config="]]
)
def test_an_empty_name_is_refused(argv, tmp_path):
    assert f"{argv[0].removesuffix('=')} is empty, perhaps by a variable that is not set" in refused(*argv)
    assert values("--start=").start == ""
    (tmp_path / "c.json").write_text('{"out_dir": ""}')
    assert "out_dir is empty" in refused("--config", f"{tmp_path}/c.json")
    (tmp_path / "c.json").write_text('{"out_dir": null}')
    assert "out_dir is None; it must be PATH" in refused("--config", f"{tmp_path}/c.json")


# Texts that name no file, and numbers whose range another flag or a folder gives.
OTHERS = {"start", "stop", "system", "train_layers", "lora_targets", "activation_function", "position_embedding",
          "norm_position", "warmup_iters", "checkpoint"}  # fmt: skip
GIVEN = {
    PretrainConfig: {"tokenizer": "bpe"},
    PPOStageConfig: {"dataset": "x", "reward_function": "x.py:f"},
    generate.Options: {"draft": "ngram"},
    convert.Options: {"source": "x", "dest": "y"},
    align.Options: {},
}
STAGE_FLAGS = [load_stage(name).Flags for name in STAGES]
COMMANDS = [*STAGE_FLAGS, *(record for record in GIVEN if record not in STAGE_FLAGS)]


@pytest.mark.parametrize("record", COMMANDS)
def test_every_name_is_one_and_every_number_has_a_range(record):
    hints = typing.get_type_hints(record, include_extras=True)
    known = {name: kinds(hint) for name, hint in hints.items() if name not in OTHERS}
    for name, found in known.items():
        assert not ({int, str, float} if record in STAGE_FLAGS else {int, str}) & set(found), name
        for whole in (part for kind in found for part in typing.get_args(kind) if isinstance(part, Whole)):
            for value in (whole.least - 1, whole.most + 1, 10**12, 10**400):
                with pytest.raises(UsageError, match=f"{name} is {shown(value)}"):
                    record(**{**GIVEN.get(record, {"dataset": "x"}), name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": 5}, "dataset is 5; it must be a text"),
        ({"dataset": []}, "dataset is empty; it must be a data set, or several"),
        ({"dataset": range(10**12)}, "dataset is 0; it must be a text"),
        ({"dataset": itertools.repeat("a.txt")}, "dataset is repeat('a.txt'); it must be at most 4096 values"),
        (
            {"dataset": "a", "dataset_weights": range(1, 10**12)},
            "dataset_weights is range(1, 1000000000000); it must be at most 4096 values",
        ),
        ({"dataset": "a", "plan": 5}, "plan is 5; it must be a text, or none"),
        ({"dataset": "a", "dtype": "float23"}, "dtype is 'float23'; it must be one of auto, float32, bfloat16"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_a_record_that_the_library_makes_is_checked_as_a_command_line_is(given, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        PretrainConfig(**given)


@pytest.mark.usefixtures("unchecked_types")
def test_a_record_makes_texts_of_paths():
    paths: typing.Any = {"dataset": (Path("a"), "b"), "out_dir": Path("c")}
    assert PretrainConfig(**paths) == PretrainConfig(dataset=("a", "b"), out_dir="c")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "1"], "unknown flag --lr; did you mean '--learning_rate'?"),
        (["--max-steps=5"], "unknown flag --max-steps; did you mean '--max_iters'?"),
        (["--output_dir", "x"], "unknown flag --output_dir; did you mean '--out_dir'?"),
        (["--batchsize", "1"], "unknown flag --batchsize; did you mean '--batch_size'?"),
        (["--compile"], "unknown flag --compile"),
        (["--backend=nccl"], "unknown flag --backend"),
        (["--tokens", "x"], "unknown flag --tokens"),
    ],
)
def test_a_suggestion_means_the_same_or_is_not_made(argv, message):
    with pytest.raises(UsageError) as caught:
        parse(PretrainConfig, argv, prog="test", description="")
    assert str(caught.value) == message


@pytest.mark.parametrize("main", [train.main, generate.main, convert.main, align.main])
def test_every_command_tells_its_version(main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"jaxgpt {importlib.metadata.version('jaxgpt')}\n"


def raising(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda argv: np.zeros(2**58), "out of memory: Unable to allocate"),
        (lambda argv: raising(MemoryError()), "out of memory: no more is given; ask for less"),
        (
            lambda argv: raising(RuntimeError("RESOURCE_EXHAUSTED: 1 byte\nand more")),
            "out of device memory: RESOURCE_E",
        ),
        (
            lambda argv: raising(RuntimeError("INTERNAL: Out of memory allocating 1 byte")),
            "out of device memory: INTER",
        ),
    ],
)
def test_memory_that_is_not_there_is_one_line(capsys, run, message):
    with pytest.raises(SystemExit) as caught:
        command(run)([])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_other_errors_are_bugs():
    with pytest.raises(RuntimeError, match="broken"):
        command(lambda argv: raising(RuntimeError("broken")))([])
