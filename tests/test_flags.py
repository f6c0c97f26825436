import dataclasses
import json
from typing import Literal

import pytest

from jaxgpt.errors import RunError, UsageError
from jaxgpt.flags import command, flag, parse


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
