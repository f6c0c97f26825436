"""What the recipe concludes: a bar that is not cleared fails, and the page shows all that was measured."""

import json
from dataclasses import replace
from pathlib import Path

from recipes.align.commands import FREE, HELD, stages
from recipes.align.evaluate import Answers
from recipes.align.page import write_page
from recipes.align.results import KL, Results, bars
from recipes.align.rules import END

PROMPT = "Speak as ROMEO."
ASKS, SAYS, NOTHING = f"ROMEO: Why so?{END}", f"ROMEO: Ay | nay.{END}", "Why"


def answers(asks: int, says: int, nothing: int, kl: float | None = None) -> Answers:
    return Answers([PROMPT], [[*[ASKS] * asks, *[SAYS] * says, *[NOTHING] * nothing]], kl)


SFT = answers(4, 16, 0)
GOOD = Results(
    models={"base": answers(0, 0, 20), "sft": SFT, "dpo": answers(18, 2, 0, 2.0), "ppo": answers(19, 0, 1, 3.0)},
    pairs={"a statement": (19, 20), "not well-formed": (8, 10)},
    hacking={HELD: {0: SFT, 10: answers(10, 9, 1, 1.0)}, FREE: {0: SFT, 10: answers(0, 1, 19, 90.0)}},
)


def failing(results: Results) -> list[str]:
    return [bar.what for bar in bars(results) if not bar.passed]


def with_model(name: str, model: Answers) -> Results:
    return replace(GOOD, models={**GOOD.models, name: model})


def test_measures_of_answers_are_means_over_them():
    model = answers(2, 1, 1)
    assert (model.format, model.rule, model.distinct, model.flawed) == (0.75, 0.5, 1, 0.75)
    assert model.wins(SFT) == 0.5 * 0.8 + 0.5 * (0.5 * 0.2 + 0.5 * 0.8)


def test_bars_are_cleared_or_fail():
    assert GOOD.preference == 0.9 and failing(GOOD) == []
    assert failing(with_model("base", answers(1, 0, 19))) == ["well-formed answers before SFT"]
    assert failing(with_model("dpo", answers(13, 7, 0, 2.0))) == ["DPO's win rate over SFT"]
    assert failing(with_model("ppo", answers(18, 2, 0, KL))) == ["PPO's divergence from SFT"]
    assert failing(with_model("ppo", answers(18, 2, 0, float("nan")))) == ["PPO's divergence from SFT"]
    assert failing(replace(GOOD, pairs={"a statement": (89, 100)})) == ["pairs that the reward model gets right"]
    swapped = replace(GOOD, hacking={HELD: GOOD.hacking[FREE], FREE: GOOD.hacking[HELD]})
    assert len(failing(swapped)) == 2


def test_the_page_shows_what_was_measured(tmp_path):
    runs = tmp_path / "runs"
    for stage in stages(runs):
        (runs / stage.name).mkdir(parents=True)
        rows = [{"step": 0, "split": split, "loss": 1.0, "accuracy": 0.5, "score": 0.0} for split in ("train", "val")]
        (runs / stage.name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    seconds = {"base": 90.0, "sft": 30.0}
    page = write_page(tmp_path, runs, GOOD, stages(Path("out-align")), seconds, "python -m recipes.align")
    text = page.read_text()
    assert "`python -m recipes.align` made this page in 2.0 minutes" in text and "**FAIL**" not in text
    assert "| dpo | 100.0% | 90.0% | 85.0% | 2.00 |" in text and "| not well-formed | 8 of 10 |" in text
    assert "`ROMEO: Why so?`" in text and str(tmp_path) not in text
    for stage in stages(Path("out-align")):
        assert str(stage) in text
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert pictures and all(f"]({name})" in text for name in pictures)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.png")) < 500_000
