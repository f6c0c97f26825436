"""A user's reward function: found by its name, and one clear line for whatever is wrong with it."""

import numpy as np
import pytest

from jaxgpt.errors import RunError, UsageError
from jaxgpt.train.reward_function import check_rewards, load_reward_function

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


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(GOOD)
    return path


def test_a_function_in_a_file_and_in_a_module(file, tmp_path, monkeypatch):
    rewards = load_reward_function(f"{file}:lengths")(["a", "bb"], ["ccc", "d"])
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, [2, -1])
    (tmp_path / "some_rewards").mkdir()
    (tmp_path / "some_rewards" / "plain.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    np.testing.assert_array_equal(load_reward_function("some_rewards.plain:lengths")(["a"], ["b"]), [0])


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
        reward(["one", "two"], ["fine", ""])
    message = f"reward function {file}:picky failed on prompt 1 ('two'): ZeroDivisionError: division by zero ({file}, "
    assert str(error.value) == message + "line 8)"
    assert isinstance(error.value.__cause__, ZeroDivisionError), "the user's own traceback is not lost"


def test_a_failure_of_all_prompts_together_says_so(file):
    with pytest.raises(RunError, match="failed on 2 prompts together, though on none of them alone: KeyError"):
        load_reward_function(f"{file}:together")(["a", "b"], ["c", "d"])


@pytest.mark.parametrize("answer", ["float('nan')", "-float('inf')", "1e39", "None", "'much'"])
def test_what_is_no_finite_number_names_the_prompt(file, answer):
    with pytest.raises(RunError, match=r"answers gave .* for prompt 1 \('bad'\); it must be a finite number"):
        load_reward_function(f"{file}:answers")(["good", "bad"], ["1.5", answer])


def test_a_wrong_number_of_rewards_is_refused(file):
    with pytest.raises(RunError, match="few gave 1 rewards for 2 responses"):
        load_reward_function(f"{file}:few")(["a", "b"], ["c", "d"])
    with pytest.raises(RunError, match="nothing gave None; it must give a list of numbers"):
        load_reward_function(f"{file}:nothing")(["a"], ["b"])


def test_rewards_may_be_any_kind_of_number():
    given = [1, np.float64(0.5), np.asarray(2), True]
    np.testing.assert_array_equal(check_rewards("x", given, range(4)), [1, 0.5, 2, 1])
