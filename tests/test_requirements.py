"""What is tested as the lowest is what pyproject.toml allows, and the lock file lies within its bounds."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def pins(file: str) -> dict[str, Version]:
    """Return the versions that a file of requirements names."""
    lines = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in lines}


def test_the_lowest_versions_are_the_lower_bounds_and_the_lock_lies_within():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {one.name.lower(): one.specifier for one in map(Requirement, project["dependencies"])}
    lowest, locked = pins("requirements-lowest.txt"), pins("requirements.lock")
    assert lowest.keys() == needed.keys()
    for name, bounds in needed.items():
        [floor] = [Version(bound.version) for bound in bounds if bound.operator == ">="]
        assert bounds.contains(locked[name]) and bounds.contains(lowest[name])
        assert lowest[name].release[: len(floor.release)] == floor.release, name
