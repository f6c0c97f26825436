"""The recipe: its data follow its own rules, the rules judge as they say, and its commands are valid."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.chat.reading import read_conversations, read_prompts
from jaxgpt.chat.records import Prompt
from jaxgpt.cli.train import read_stage
from jaxgpt.errors import RunError
from jaxgpt.model.config import GPTConfig
from jaxgpt.rl.reward_function import load_reward_function
from jaxgpt.runs.weights import save_params
from jaxgpt.stages.ppo import PPOStageConfig
from recipes.align import data, rules
from recipes.align.__main__ import Clock, run
from recipes.align.commands import FREE, HELD, Stage, checkpoints, stages
from recipes.align.evaluate import Answers
from recipes.align.make_pairs import ILL_FORMED, STATEMENT, pairs
from recipes.align.rules import END


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data.write_data(folder)
    return folder


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_data_are_the_same_each_time(folder, tmp_path):
    counts = data.write_data(tmp_path)
    assert counts == {file.stem: len(records(file)) for file in folder.iterdir()} and len(counts) == 5
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


@pytest.mark.parametrize("part", data.PARTS)
def test_the_stages_can_read_the_data(folder, part):
    assert len(read_prompts(folder / f"prompts-{part}.jsonl")) == 24 * {"train": 6}.get(part, 1)


@pytest.mark.parametrize("part", ["train", "val"])
def test_conversations_are_what_the_rule_wants(folder, part):
    assert len(read_conversations(folder / f"sft-{part}.jsonl")) > 100
    for user, assistant in (record["messages"] for record in records(folder / f"sft-{part}.jsonl")):
        assert rules.well_formed(user["content"], assistant["content"] + END)


def test_parts_share_neither_prompts_nor_lines(folder):
    prompts = [{json.dumps(record) for record in records(folder / f"prompts-{part}.jsonl")} for part in data.PARTS]
    told = [records(folder / f"sft-{part}.jsonl") for part in ("train", "val")]
    lines = [{record["messages"][1]["content"] for record in part} for part in told]
    for sets in (prompts, lines):
        assert sum(map(len, sets)) == len(set.union(*sets))
    for name in data.SPEAKERS:
        assert all(any(name in prompt for prompt in some) for some in prompts)


def test_a_speech_becomes_its_short_sentences():
    play = "ACT I.\n\nHam.\n[Aside.] A little more\nthan kin! Why so? Ay.\n\n[Exit.]\n\nHor.\nMy lord--I came.\n"
    said = [(name, list(data.sentences(text))) for name, text in data.speeches(play)]
    assert said == [("HAM", ["A little more than kin!"]), ("HOR", ["My lord--I came."])]


@pytest.mark.parametrize(
    ("answer", "formed", "score"),
    [
        (f"ROMEO: Is the day so young?{END}", True, 1),
        (f"ROMEO: 'Tis the way.{END}", True, 0),
        ("ROMEO: Is the day so young?", False, 0),  # its turn does not end
        (f"JULIET: Is the day so young?{END}", False, 0),
        (f"Is the day so young?{END}", False, 0),
        (f"ROMEO: Ay. Is the day so young?{END}", False, 0),
        (f"ROMEO: is the day so young?{END}", False, 0),
        (f"ROMEO: Is the day\nso young?{END}", False, 0),
        (f"ROMEO: Is the day so young{END}", False, 0),
        (f"ROMEO: ROMEO: Is the day so young?{END}", False, 0),
        (f"ROMEO:{END}", False, 0),
        (END, False, 0),
    ],
)
def test_the_rules_judge_answers(answer, formed, score):
    assert rules.well_formed("Speak as ROMEO.", answer) is formed
    assert rules.score("I want to hear ROMEO.", answer) == score


@pytest.mark.parametrize(
    ("ours", "theirs", "rate"),
    [
        ([[1]], [[0]], 1),
        ([[0]], [[1]], 0),
        ([[1, 0]], [[1, 0]], 0.5),
        ([[1, 1]], [[1, 0]], 0.75),
        ([[1], [0]], [[0], [0]], 0.75),  # prompts weigh the same …
        ([[1, 1], [0]], [[0, 0], [0]], 0.75),  # … however many answers they have
    ],
)
def test_a_win_rate_counts_ties_half(ours, theirs, rate):
    assert rules.win_rate(ours, theirs) == rate
    assert rules.win_rate(theirs, ours) == 1 - rate


def test_words_are_counted():
    assert rules.distinct_words(f"LEAR: Never, never, never.{END}") == 0.5
    assert rules.distinct_words(END) == 1
    reward = load_reward_function("recipes/align/rules.py:question_words")
    prompts = [Prompt("", "")] * 3
    assert reward(prompts, ["What, what?", "Who knows how.", "The somewhat whole."]).tolist() == [2, 2, 0]


def test_of_a_pair_the_rule_prefers_the_chosen_answer():
    texts = [
        "ROMEO: Ay.",
        "ROMEO: Why so?",
        "ROMEO: Why so?",
        "Why so?",
        "ROMEO: Who is it?",
        "ROMEO: Is",
        "",
        "ROMEO:",
    ]
    given = Answers(["Be ROMEO."], [[*(f"{text}{END}" for text in texts), "ROMEO: It has no"]], None)
    found = [(pair["chosen"], pair["rejected"], pair["kind"]) for pair in pairs(given)]
    assert found == [
        ("ROMEO: Why so?", "ROMEO: Ay.", STATEMENT),
        ("ROMEO: Why so?", "Why so?", ILL_FORMED),
        ("ROMEO: Who is it?", "ROMEO: Is", ILL_FORMED),
        ("ROMEO: Why so?", "ROMEO:", ILL_FORMED),
    ]


def test_without_a_question_there_is_no_pair():
    assert not list(pairs(Answers(["Be ROMEO."], [[f"ROMEO: Ay.{END}", f"Ay?{END}"]], None)))


def test_every_command_has_valid_flags_and_begins_with_a_run_before_it(folder):
    before: list[str] = []
    for stage in stages(folder.parent / "new"):
        read = read_stage(stage.words)
        kind, flags = read.name, read.flags
        assert (flags.out_dir, flags.init_from) == (str(folder.parent / "new" / stage.name), "auto")
        assert flags.max_iters == stage.iterations and not stage.done(folder)
        if kind != "pretrain":
            assert Path(flags.base).name in before
        if kind in ("sft", "ppo"):  # pairs are made on the way
            assert (folder / Path(flags.dataset).name).exists() and (folder / Path(flags.val_dataset).name).exists()
        before.append(stage.name)
    assert before == ["base", "sft", "reward", "dpo", "ppo", HELD, FREE]


def test_the_runs_that_show_hacking_differ_in_the_coefficient_alone_and_keep_their_checkpoints(folder):
    runs = {stage.name: stage for stage in stages(folder)}
    held, free = (read_stage(runs[name].words).flags for name in (HELD, FREE))
    assert isinstance(held, PPOStageConfig) and isinstance(free, PPOStageConfig)
    differing = {name for name, value in vars(held).items() if value != getattr(free, name)}
    assert differing == {"out_dir", "kl_coef"} and free.kl_coef == 0 < held.kl_coef
    assert len(checkpoints(runs[HELD])) <= held.keep


def test_a_stage_that_fails_ends_the_recipe_and_its_time_counts(tmp_path, capfd):
    clock = Clock(tmp_path / "seconds.json")
    for code in (1, 2):
        with pytest.raises(RunError, match="base ended with 2"):
            run(Stage("base", ("--max_iters", "none"), "it fails"), tmp_path, clock)
        assert "python train.py --max_iters none" in capfd.readouterr().out
        assert Clock(tmp_path / "seconds.json").seconds["base"] > code * 0.01


def test_a_stage_that_is_done_is_left_alone(tmp_path, capfd):
    save_params(tmp_path / "base", GPTConfig(n_embd=12), {"nothing": np.zeros(1)})
    stage = Stage("base", ("--max_iters", "0"), "it is done")
    assert stage.done(tmp_path) and not Stage("sft", stage.words, "").done(tmp_path)
    run(stage, tmp_path, Clock(tmp_path / "seconds.json"))
    assert "done before" in capfd.readouterr().out
