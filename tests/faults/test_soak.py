"""The soak, shortened: `python -m benchmarks.soak` kills a run 50 times and watches 5,000 steps."""

import pytest

from benchmarks import soak


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(capsys):
    with pytest.raises(SystemExit) as ended:
        soak.main(["--kills", "2", "--steps", "500"])
    assert ended.value.code == 0, capsys.readouterr().out


def test_a_difference_is_found(workshop, whole):
    """Lest the comparison be blind."""
    run = workshop.folder / whole
    assert soak.differences(run, run, 20) == []
    other = soak.read_state(run, workshop.steps(whole)[-2])
    changed = [name for name, value in soak.read_state(run, 20).items() if other[name] != value]
    assert "['rest']['step']" in changed and any("kernel" in name for name in changed)
