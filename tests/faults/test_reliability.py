"""The table of faults for users names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_in_the_table_exists():
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    named = [re.findall(r"`([\w/]+)::(test_\w+)`", row) for row in rows if not row.startswith("| when")]
    assert len(named) > 50 and all(named), "each row names one"
    for file, test in {pair for pairs in named for pair in pairs}:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"
