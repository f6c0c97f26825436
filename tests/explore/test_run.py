"""A run's page shows its checkpoints on one slider, its curves and what they say, and where it lies among N and D."""

import json

import pytest

from jaxgpt.cli.explore import main
from jaxgpt.errors import UsageError
from jaxgpt.explore import explore
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

    def __init__(self, folder, draw):
        self.folder, self.tokenizer = folder, CharTokenizer(TEXT + "abcdefghijklmnopqrstuvwxyz")
        self.config = GPTConfig(self.tokenizer.vocab_size, 32, n_embd=8, n_layer=1, n_head=2)
        self.params = draw(self.config)
        write_record(folder, self.config, stage="pretrain", new=True, flags=FLAGS)
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
