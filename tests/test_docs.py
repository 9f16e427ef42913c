from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


# Read or set by name, or named in a constant.
VARIABLES = (
    r'environ(?:\.\w+)?[\[(]\s*"(\w+)"',
    r'"((?:CONR_RAY|RAY|TUNE|WANDB|XDG)_[A-Z_]+)"',
)


def test_each_variable_of_the_environment_is_told() -> None:
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text()))
    code = "\n".join(file.read_text() for file in (ROOT / "conr_ray").rglob("*.py"))
    used = {name for pattern in VARIABLES for name in re.findall(pattern, code)}
    assert len(used) > 15
    assert used - told == set()
    # Those of our own are read.
    assert {name for name in told - used if name.startswith("CONR_RAY_")} == set()


def test_each_failure_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "failures.md").read_text()))
    assert len(named) > 20
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named - set(re.findall(r"^ *def (test_\w+)", code, re.MULTILINE)) == set()
