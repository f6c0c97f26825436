"""A user's reward function: found by its name, and one clear line for whatever is wrong with it."""

import contextlib
import io
import json
import os
import signal
import socket
import sys
from contextlib import ExitStack
from subprocess import PIPE

import numpy as np
import pytest

from jaxgpt.chat.records import Message, Prompt
from jaxgpt.errors import RunError, UsageError
from jaxgpt.rl.reward_function import check_rewards, load_reward_function
from jaxgpt.signals import stop_on_signal
from tests.processes import started

GOOD = """
LIMIT = 3

def lengths(prompts, responses):
    return [len(response) - len(prompt) for prompt, response in zip(prompts, responses)]

def picky(prompts, responses):
    return [1 / len(response) for response in responses]

def together(prompts, responses):
    if len(prompts) > 1:
        raise KeyError("only one")
    return [1.0]

def answers(prompts, responses):
    return [eval(response) for response in responses]

def few(prompts, responses):
    return [1.0]

def nothing(prompts, responses):
    pass
"""


def asked(*texts: str) -> list[Prompt]:
    return [Prompt(text, "f:1") for text in texts]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(GOOD)
    return path


def test_a_function_in_a_file_and_in_a_module(file, tmp_path, monkeypatch):
    rewards = load_reward_function(f"{file}:lengths")(asked("a", "bb"), ["ccc", "d"])
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, [2, -1])
    (tmp_path / "some_rewards").mkdir()
    (tmp_path / "some_rewards" / "plain.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    np.testing.assert_array_equal(load_reward_function("some_rewards.plain:lengths")(asked("a"), ["b"]), [0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lengths", "reward function lengths: must be package.module:function or path/to/file.py:function"),
        (":lengths", "must be package.module:function"),
        ("FILE:", "must be package.module:function"),
        ("nowhere.py:lengths", "reward function nowhere.py:lengths: no file nowhere.py"),
        ("no_such_package.rewards:lengths", "no module 'no_such_package'; a file is named with its .py"),
        ("jaxgpt.no_such_rewards:lengths", "no module 'jaxgpt.no_such_rewards'"),
        ("FILE:length", "has no 'length'; did you mean 'lengths'?"),
        ("FILE:LIMIT", "LIMIT is a int, not a function"),
    ],
)
def test_what_is_not_there_is_a_usage_error(file, name, message):
    with pytest.raises(UsageError) as error:
        load_reward_function(name.replace("FILE", str(file)))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing' ("),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero ("),
        ("x = 1\ndef f(:", "SyntaxError: "),
        ("import sys\nsys.exit(0)", "SystemExit: 0 ("),
        ("x = 1\nraise GeneratorExit", "GeneratorExit:  ("),
    ],
)
def test_a_file_that_can_not_be_run_is_named_with_its_line(file, text, message):
    file.write_text(text)
    with pytest.raises(UsageError, match="can't be imported: ") as error:
        load_reward_function(f"{file}:f")
    assert message in str(error.value) and "line 2)" in str(error.value)


def test_a_failure_names_the_function_the_prompt_and_the_line(file):
    reward = load_reward_function(f"{file}:picky")
    with pytest.raises(RunError) as error:
        reward(asked("one", "two"), ["fine", ""])
    message = f"reward function {file}:picky failed on prompt 1 ('two'): ZeroDivisionError: division by zero ({file}, "
    assert str(error.value) == message + "line 8)"
    assert isinstance(error.value.__cause__, ZeroDivisionError), "the user's own traceback is not lost"


# What ends Python is no answer either, nor what fails only when the answer is looked at.
ENDS = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit('bye')": "SystemExit: bye",
    "raise KeyboardInterrupt": "KeyboardInterrupt: ",
    "raise GeneratorExit": "GeneratorExit: ",
    "raise asyncio.CancelledError": "CancelledError: ",
    "raise Odd": "Odd: ",
    "return (1 / 0 for _ in prompts)": "ZeroDivisionError: division by zero",
    "return map(sys.exit, [0])": "SystemExit: 0",
    "return [Unknown()]": "SystemExit: 0",
}


@pytest.mark.parametrize("body", ENDS)
def test_whatever_is_no_value_is_an_error_with_its_line(tmp_path, monkeypatch, body):
    path = tmp_path / "ends.py"
    path.write_text(
        f"import asyncio, sys\ndef reward(prompts, responses):\n    {body}\n"
        "class Odd(BaseException):\n    def __str__(self): return 1 / 0\n"
        "class Unknown:\n    def __float__(self): sys.exit(0)\n"
    )
    # As in a run, where Ctrl-C raises nothing.
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    with pytest.raises(RunError) as error:
        load_reward_function(f"{path}:reward")(asked("a"), ["b"])
    assert f": {ENDS[body]} (" in str(error.value)
    line = 7 if "Unknown" in body else 3
    assert f"({path}, line {line})" in str(error.value) or "map" in body, "a map has no line"


@pytest.mark.parametrize("body", ["def reward(prompts, responses):\n    {}", "{}\ndef reward(p, r): pass"])
def test_ctrl_c_is_not_taken_for_a_failure(tmp_path, body):
    (tmp_path / "long.py").write_text("import signal\n" + body.format("signal.raise_signal(signal.SIGINT)"))
    with pytest.raises(KeyboardInterrupt):
        load_reward_function(f"{tmp_path / 'long.py'}:reward")(asked("a"), ["b"])


def test_ctrl_c_while_a_function_runs_stops_the_run(tmp_path):
    (tmp_path / "long.py").write_text(
        "import signal\ndef reward(prompts, responses):\n    signal.raise_signal(signal.SIGINT)\n    return [1]\n"
    )
    with stop_on_signal() as stop:
        assert load_reward_function(f"{tmp_path / 'long.py'}:reward")(asked("a"), ["b"]) == [1]
        assert stop.requested(1) and stop.reason == "SIGINT"


def test_conversations_are_given_whole_to_a_function_that_takes_them(tmp_path):
    (tmp_path / "whole.py").write_text(
        "import json\ndef told(prompts, responses, conversations):\n"
        "    print(json.dumps([prompts, responses, conversations]))\n    return [0.0 for _ in prompts]\n"
    )
    messages = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    reward = load_reward_function(f"{tmp_path / 'whole.py'}:told")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        reward([Prompt(messages, "f:1"), Prompt("text", "f:2")], ["d", "e"])
    assert json.loads(out.getvalue()) == [["c", "text"], ["d", "e"], [[vars(message) for message in messages], []]]


def test_a_failure_of_all_prompts_together_says_so(file):
    with pytest.raises(RunError, match="failed on 2 prompts together, though on none of them alone: KeyError"):
        load_reward_function(f"{file}:together")(asked("a", "b"), ["c", "d"])


@pytest.mark.parametrize("answer", ["float('nan')", "-float('inf')", "1e39", "None", "'much'"])
def test_what_is_no_finite_number_names_the_prompt(file, answer):
    with pytest.raises(RunError, match=r"answers gave .* for prompt 1 \('bad'\); it must be a finite number"):
        load_reward_function(f"{file}:answers")(asked("good", "bad"), ["1.5", answer])


def test_a_wrong_number_of_rewards_is_refused(file):
    with pytest.raises(RunError, match="few gave 1 rewards for 2 responses"):
        load_reward_function(f"{file}:few")(asked("a", "b"), ["c", "d"])
    with pytest.raises(RunError, match="nothing gave None; it must give a list of numbers"):
        load_reward_function(f"{file}:nothing")(asked("a"), ["b"])


def test_rewards_may_be_any_kind_of_number():
    given = [1, np.float64(0.5), np.asarray(2), True]
    np.testing.assert_array_equal(check_rewards("x", given, range(4)), [1, 0.5, 2, 1])


ASKED = """
import sys
from jaxgpt.chat.records import Prompt
from jaxgpt.devices import start_devices
from jaxgpt.rl.scorers import function_scorer
from jaxgpt.tokenizers.char import CharTokenizer
start_devices("cpu", distributed=True)
prompts = {(0,): Prompt("a", "here")}
score = function_scorer(sys.argv[1], prompts, CharTokenizer("ab"), ())
print(score([[0], [0]], [[1], [1, 1]]).tolist(), file=sys.stderr)
"""


def test_the_first_of_several_processes_asks_for_all(tmp_path):
    """A function that draws, or asks a judge, would tell each of them something else."""
    (tmp_path / "judge.py").write_text(f"""
import random
def judge(prompts, responses):
    with open({str(tmp_path / "asked")!r}, "a") as file:
        file.write("once")
    return [random.random() for _ in prompts]
""")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ASKED, f"{tmp_path / 'judge.py'}:judge"]
    with ExitStack() as stack:
        both = [
            stack.enter_context(started(command, env={**environment, "JAX_PROCESS_ID": str(n)}, stderr=PIPE, text=True))
            for n in range(2)
        ]
        told = [process.communicate(timeout=120)[1].splitlines()[-1] for process in both]
    assert told[0] == told[1] and len(json.loads(told[0])) == 2
    assert (tmp_path / "asked").read_text() == "once"
