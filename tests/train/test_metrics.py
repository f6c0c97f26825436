"""Metrics: always valid JSON, cut at the step a run goes on from, and never brought down by a dashboard."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto import event_pb2

from jaxgpt.train.metrics import MetricsLog, plot, read_rows


def write(folder, steps, *, step=0, **options):
    log = MetricsLog(folder, step=step, **options)
    for number in steps:
        log.write(number, "train", loss=1.0 / (1 + number))
    log.close()


def steps(folder):
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


def test_rows_are_read_as_they_were_written(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    log.write(1, "train", loss=2.5, mfu=None)
    log.write(1, "val", loss=2.25)
    # Without closing: who watches the file sees each row at once.
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "split": "train", "loss": 2.5, "mfu": None},
        {"step": 1, "split": "val", "loss": 2.25},
    ]
    log.close()


def test_event_files_do_not_wait_for_pytorch(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from jaxgpt.train.metrics import MetricsLog\n"
        f"MetricsLog(pathlib.Path({str(tmp_path)!r}), step=0, tensorboard=True).close()\n"
        "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules\n"
        "import torch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_finite_is_null(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    log = MetricsLog(tmp_path, step=0)
    log.write(1, "train", loss=float("nan"), grad_norm=float("inf"), lr=-float("inf"))
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "split": "train", "loss": None, "grad_norm": None, "lr": None}


def test_a_full_disk_names_the_file(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    log._file.close()
    log._file = open("/dev/full", "a", buffering=1)
    with pytest.raises(OSError, match="No space left on device: .*/metrics.jsonl'"):
        log.write(1, "train", loss=1.0)
    with pytest.raises(OSError, match="metrics.jsonl"):
        log.close()
    (tmp_path / ".metrics.jsonl.part").symlink_to("/dev/full")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    with pytest.raises(OSError, match="No space left on device: .*/metrics.jsonl'"):
        MetricsLog(tmp_path, step=1)


@pytest.mark.parametrize("cut", ['{"step": 3, "spl', "12", '{"loss": 1.0}', "\x00\x00"])
def test_a_line_cut_off_in_the_middle_costs_only_itself(tmp_path, cut):
    write(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(cut)
    assert steps(tmp_path) == [1, 2]
    write(tmp_path, [3], step=2)
    assert steps(tmp_path) == [1, 2, 3]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


NO_ROWS = [
    '{"step": 1, "split": "train", "loss": "low"}',
    '{"step": 1, "split": "val", "loss": [1.0]}',
    '{"step": 1, "split": "train", "loss": {"a": NaN}}',
    '{"step": 1, "split": "train", "loss": true}',
    '{"step": 1, "split": "train", "loss": NaN}',
    '{"step": 1, "split": "train", "loss": 1e999}',
    '{"step": 1, "split": "train", "loss": 1' + "0" * 400 + "}",
    '{"step": 1, "split": "train", "loss": 1' + "0" * 5000 + "}",
    '{"step": true, "split": "train", "loss": 1.0}',
    '{"step": 1.5, "split": "train", "loss": 1.0}',
    '{"step": null, "split": "train"}',
    '{"step": 1, "split": ["train"]}',
    "[" * 10**5,
    "null",
    "",
]


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: line[:60])
def test_lines_that_are_no_rows_are_left_out_with_a_warning(tmp_path, capsys, line):
    write(tmp_path, [1])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(line + "\n" + '{"step": 2, "split": "train", "loss": 1.0}\n')
    assert steps(tmp_path) == [1, 2]
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path / 'metrics.jsonl'}:2: no row of metrics; left out, as 1 in all\n"
    )
    write(tmp_path, [3], step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_what_is_as_large_as_may_be_is_drawn(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    for step, loss in enumerate((1.0, 3.4e38, -3.4e38, 1e-320)):
        log.write(step, "train", loss=loss)
    log.close()
    assert plot(tmp_path).exists()


def test_rows_after_the_step_a_run_goes_on_from_are_cut(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, [5, 6], step=4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_new_run_begins_an_empty_file(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [])
    assert steps(tmp_path) == []


class Broken:
    """A dashboard whose server is gone."""

    def write(self, row):
        raise ConnectionError("no route to host")

    def close(self):
        raise ConnectionError("no route to host")


def test_a_dashboard_that_fails_is_warned_of_once_and_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxgpt.train.metrics._TensorBoard", lambda folder, step: Broken())
    write(tmp_path, [1, 2, 3], tensorboard=True)
    assert steps(tmp_path) == [1, 2, 3]
    assert capsys.readouterr().err == "warning: tensorboard failed and is off from here: no route to host\n"


def test_a_dashboard_that_fails_at_the_end_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxgpt.train.metrics._TensorBoard", lambda folder, step: Broken())
    write(tmp_path, [], tensorboard=True)
    assert "warning: tensorboard failed" in capsys.readouterr().err


def test_a_dashboard_that_is_not_there_is_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, [1], wandb="project")
    assert steps(tmp_path) == [1]
    assert capsys.readouterr().err.startswith("warning: wandb could not be started and is off: ")


def shown(folder):
    """Return what TensorBoard shows of a run's event files: the start of a session hides its step and later ones."""
    found = []
    for events in sorted((folder / "tensorboard").iterdir()):
        data = events.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                found = [point for point in found if point[0] < event.step]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_what_the_file_gets(tmp_path):
    write(tmp_path, [1, 2], tensorboard=True)
    assert shown(tmp_path) == [(1, "train/loss", 0.5), (2, "train/loss", pytest.approx(1 / 3))]


@pytest.mark.parametrize(("died_at", "went_on_from"), [(3, 2), (3, 3), (3, 0), (0, 0)])
def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path, monkeypatch, died_at, went_on_from):
    monkeypatch.setattr("time.time", iter(range(1_800_000_000, 1_900_000_000)).__next__)  # event files are named by it
    write(tmp_path, range(died_at + 1), tensorboard=True)
    again = range(went_on_from + 1 if went_on_from else 0, 6)
    write(tmp_path, again, step=went_on_from, tensorboard=True)
    assert [step for step, *_ in shown(tmp_path)] == steps(tmp_path) == list(range(6))


def test_wandb_goes_on_with_the_run_that_the_folder_names(tmp_path, monkeypatch):
    runs, run = [], SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: runs.append(how["id"]) or run))
    for step in (0, 3, 5, 0):
        write(tmp_path, [step + 1], step=step, wandb="project")
    first, second, third, anew = runs
    assert first == second == third != anew, "from step 0 it is another run"


@pytest.mark.parametrize("name", ["r$\\frac$", "日本"])
def test_a_folder_may_have_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    write(tmp_path / name, [1])
    assert plot(tmp_path / name).exists()


def test_a_curve_is_drawn_also_of_nan_and_of_nothing(tmp_path):
    write(tmp_path, [])
    assert plot(tmp_path).read_bytes().startswith(b"\x89PNG")
    log = MetricsLog(tmp_path, step=0)
    for number, loss in enumerate([2.0, float("nan"), 1.0]):
        log.write(number, "train", loss=loss)
    log.close()
    assert plot(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_curve_shows_learning_rate_and_gradient_norm_where_they_are_known(tmp_path):
    def height(**more: float) -> int:
        row = {"step": 1, "split": "train", "loss": 2.0, **more}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return int.from_bytes(plot(tmp_path).read_bytes()[20:24])

    assert height() < height(lr=1e-3) < height(lr=1e-3, grad_norm=1.0)
