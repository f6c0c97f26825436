"""A run's page shows its checkpoints on one slider, its curves and what they say, and where it lies among N and D."""

import json
from dataclasses import replace

import pytest

from jaxgpt.cli.explore import main
from jaxgpt.errors import UsageError
from jaxgpt.explore import explore, training
from jaxgpt.explore.training import history, read_ladder
from jaxgpt.inspect import fit_power_law, nearest
from jaxgpt.model.config import GPTConfig
from jaxgpt.runs import Checkpoints
from jaxgpt.runs.folder import read_record, write_record
from jaxgpt.runs.manifest import Progress
from jaxgpt.tokenizers import CharTokenizer

TEXT = "the cat and the hat"
FLAGS = {"seed": 3, "batch_size": 4, "gradient_accumulation_steps": 2, "block_size": 16}


class Run:
    """A run of 40 steps with checkpoints of the last 20, whose loss rises at the end."""

    def __init__(self, folder, draw, stage="pretrain", labels=None):
        self.folder, self.tokenizer = folder, CharTokenizer(TEXT + "abcdefghijklmnopqrstuvwxyz")
        self.config = GPTConfig(self.tokenizer.vocab_size, 32, n_embd=8, n_layer=1, n_head=2, labels=labels)
        self.params = draw(self.config)
        write_record(folder, self.config, stage=stage, new=labels is None, flags=FLAGS)
        checkpoints = Checkpoints(folder)
        checkpoints.write(Progress(20), params=self.params)
        halved = {**self.params, "wte": {"embedding": self.params["wte"]["embedding"][::-1] / 2}}
        checkpoints.write(Progress(40, best_step=20, best_loss=2.0), params=halved)
        checkpoints.wait()
        losses = [(0, 3.3), (10, 2.5), (20, 2.0), (30, 2.1), (40, 2.4)]
        rows = [
            {"step": step, "split": split, "loss": loss, "lr": 0.1}
            for step, loss in losses
            for split in ("train", "val")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def page(self, **more):
        return explore(self.config, self.params, self.tokenizer, TEXT, run=self.folder, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory, draw):
    return Run(tmp_path_factory.mktemp("run"), draw)


def test_history_begins_with_the_seeds_weights_and_has_the_shown_step(run):
    record = read_record(run.folder)
    assert [step for step, _ in history(run.folder, 20, record, run.config)] == [0, 20, 40]
    assert [step for step, _ in history(run.folder, 20, {**record, "new": False}, run.config)] == [20, 40]


def test_one_slider_goes_through_training(run, browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(run.page(), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []
    token = run.tokenizer.encode(TEXT)[-1]
    found = {}
    for at in range(3):
        found[at] = browser.execute_script(
            "const s = document.getElementById('snapshot'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'));"
            "return [s.nextSibling.textContent, document.querySelector('#embeddings .bar').innerText.split('\\n')[0],"
            "document.querySelector('#embeddings circle').getAttribute('cx')]",
            at,
        )
    assert [step for step, _, _ in found.values()] == ["0", "20", "40"]
    [(best, _)] = nearest(run.params["wte"]["embedding"], token, 1)
    assert found[1][1].replace("␣", " ") == run.tokenizer.decode([best])
    assert found[1][2] != found[2][2]
    assert browser.execute_script("return document.querySelectorAll('#through tr').length") == 3
    says = browser.execute_script("return document.getElementById('diagnoses').textContent")
    assert "lowest at step 20" in says and "by heart" in says
    # D = 40 updates of 4 times 2 rows of 16 tokens.
    scaling = browser.execute_script("return document.querySelector('#scaling table').innerText")
    assert "5.12 k" in scaling


def test_a_stream_that_is_not_only_added_to_is_said_to_be(run):
    assert training.notes({}, run.config) == []
    [note] = training.notes({}, replace(run.config, norm_position="post"))
    assert "normalises the stream" in note


def test_a_level_curve_lies_at_the_number_that_it_has(run, browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(run.page(), encoding="utf-8")
    browser.get(file.as_uri())
    heights = browser.execute_script(
        "const svg = document.querySelector('#training svg[aria-label=\"Learning rate\"]');"
        "const label = [...svg.querySelectorAll('text')].find((text) => text.textContent === '0.1');"
        "const boxes = [label, ...svg.querySelectorAll('path')].map((part) => part.getBBox());"
        "return boxes.map((box) => box.y + box.height / 2)"
    )
    assert len(heights) == 3 and max(heights) - min(heights) < 8


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"loss": "sigmoid"}, "−log σ of how much more"),
        ({"loss": "robust"}, "0.693 at first"),
        ({"loss": "hinge"}, ": 1 at first"),
        ({"loss": "ipo"}, ": 1/(4 β²) at first"),
    ],
)
def test_dpos_losses_are_told_apart(run, flags, says):
    assert says in training.training_data(run.folder, {"stage": "dpo", "flags": flags})["about"]


def test_the_run_stands_among_those_of_a_ladder(run, browser, tmp_path, capsys):
    """As the command takes them; the line is the power law through the ladder, without the run."""
    runs = [{"parameters": n, "tokens": 20 * n, "loss": loss} for n, loss in ((100, 4.0), (300, 3.1), (1000, 2.3))]
    (tmp_path / "scaling.json").write_text(json.dumps({"runs": runs}))
    file = tmp_path / "page.html"
    run.tokenizer.save(run.folder)
    main([str(run.folder), "--text", TEXT, "--scaling", str(tmp_path / "scaling.json"), "--out", str(file)])
    assert "open it in a browser" in capsys.readouterr().out
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []
    drawings = "return [...document.querySelectorAll('#scaling .view svg[role=img]')]"
    assert browser.execute_script(f"{drawings}.map((svg) => svg.querySelectorAll('circle').length)") == [3 + 2, 3 + 1]
    law = fit_power_law([6 * 20 * n["parameters"] ** 2 for n in runs], [n["loss"] for n in runs])
    says = browser.execute_script("return document.getElementById('law').textContent")
    assert f"C^−{law.exponent:.3g}" in says
    table = browser.execute_script("return document.querySelector('#scaling table').innerText")
    assert "2.4" in table, "the run's last loss on validation"


def test_large_runs_are_counted_in_units(run, browser, tmp_path, monkeypatch):
    """Numbers keep three digits and a unit: at the end of one, where rounding leads to the next, and far beyond."""
    monkeypatch.setattr(training, "count", lambda config: {"total": 999_999_999})
    ladder = [(n, 20 * n, 4 - 0.1 * i) for i, n in enumerate((10**7, 10**8, 10**9, 10**10, 10**11))]
    file = tmp_path / "page.html"
    file.write_text(run.page(ladder=ladder), encoding="utf-8")
    browser.get(file.as_uri())
    table = browser.execute_script("return document.querySelector('#scaling table').innerText")
    assert [line.split("\t")[1] for line in table.splitlines()[:3]] == ["1 G", "20 G", "5.12 k"]
    marks = "return [...document.querySelectorAll('#scaling .figure')].map((figure) => [...figure.querySelectorAll("
    amounts, losses = browser.execute_script(f"{marks}'text.soft')].map((text) => text.textContent))")
    assert {"10 P", "1 E", "100 E", "1 Z", "100 Z"} <= set(losses)
    assert not any("e+" in text for text in [*amounts, *losses])
    heights = sorted(float(text) for text in losses if " " not in text)
    assert 3 <= len(heights) <= 10, "few enough to read, where losses differ by less than 1"


def test_the_value_head_and_the_loss_of_ppo_say_nothing(draw, browser, tmp_path):
    run = Run(tmp_path, draw, "ppo", labels=("value",))
    rows = [{"step": step, "split": "train", "loss": -0.01 - 0.001 * (step % 3)} for step in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "page.html"
    file.write_text(run.page(), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []
    for view, says in (("notes", "The value head of PPO is not shown"), ("training", "no meaning by itself")):
        assert says in browser.find_element("id", view).text
    for view, says in (("predictions", "Labels"), ("architecture", "scores of labels"), ("training", "spikes")):
        assert says not in browser.find_element("id", view).text


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ("no JSON", "not JSON"),
        ("{}", "runs must be of type list"),
        ('{"runs": [{"parameters": 1, "tokens": 2}]}', "it must have parameters, tokens, loss"),
        ('{"runs": [{"parameters": 1, "tokens": 0, "loss": 1}]}', "positive numbers"),
    ],
)
def test_a_file_that_is_no_ladder_is_refused(tmp_path, contents, says):
    file = tmp_path / "scaling.json"
    file.write_text(contents)
    with pytest.raises(UsageError, match=says):
        read_ladder(file)
