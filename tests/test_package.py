"""The wheel, and the release, made of a scratch copy of this tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.waiting import HANG_S
from tools.oldest import oldest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tracked files of this one."""
    folder = tmp_path_factory.mktemp("scratch") / "repository"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True)
    for name in listed.stdout.decode().split("\0")[:-1]:
        if (ROOT / name).is_file() and not name.startswith(("docs/figures", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "somebody")
    git(folder, "config", "user.email", "somebody@example.com")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def released(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/release.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.slow
def test_a_release_is_built_committed_and_tagged(copied: Path) -> None:
    told = released(copied, "0.3.0", "--checks", "true")
    assert told.returncode == 0, told.stderr
    assert git(copied, "describe", "--exact-match") == "v0.3.0\n"
    assert git(copied, "status", "--porcelain") == ""
    assert yaml.safe_load((copied / "CITATION.cff").read_text())["version"] == "0.3.0"
    changes = (copied / "CHANGELOG.md").read_text()
    assert changes.startswith("# Changelog\n\n## Unreleased\n\n## 0.3.0 · 20")
    (wheel,) = (copied / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = archive.read("conr_ray-0.3.0.dist-info/entry_points.txt").decode()
    assert {"conr_ray/py.typed", "conr_ray/presets/digits.yaml"} <= set(names)
    assert "conr_ray/reporting/templates" in {name.rpartition("/")[0] for name in names}
    assert not [name for name in names if name.startswith(("tests", "tools", "benchmarks"))]
    assert "conr_ray = conr_ray.__main__:main" in points
    # Again: nothing is left to tell of.
    told = released(copied, "0.4.0", "--checks", "true")
    assert told.returncode == 1 and "nothing is below ## Unreleased" in told.stderr


def test_a_release_that_fails_leaves_nothing(copied: Path) -> None:
    before = git(copied, "rev-parse", "HEAD")
    assert "is no version: give one such" in released(copied, "next").stderr
    assert "is not above" in released(copied, "0.0.1").stderr
    if "## 0.3.0" not in (copied / "CHANGELOG.md").read_text():
        told = released(copied, "0.9.0", "--checks", "false")
        assert told.returncode == 1 and "false fails: mend it" in told.stderr
    (copied / "README.md").write_text("changed")
    assert "not committed: commit or stash" in released(copied, "0.9.0").stderr
    git(copied, "checkout", "--", "README.md")
    assert git(copied, "rev-parse", "HEAD") == before
    assert git(copied, "status", "--porcelain") == ""


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    text = """
[project]
dependencies = ["Torch>=2.11", "ray[train,data]>=2.50", "numpy>=1.26,<3"]
optional-dependencies = {a = ["numpy>=2.0"], b = ["types-PyYAML"]}
"""
    assert oldest(text) == ["numpy==2.0.*", "ray==2.50.*", "torch==2.11.*"]
    assert len(oldest((ROOT / "pyproject.toml").read_text())) > 40


def test_citation_and_workflows_are_whole() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    init = (ROOT / "conr_ray" / "__init__.py").read_text()
    assert f'__version__ = "{citation["version"]}"' in init
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Yu"
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run", "") for job in flow["jobs"].values() for step in job["steps"]]
    made = {
        target for step in steps for word in [step.split()] if "make" in word for target in word
    }
    targets = (ROOT / "Makefile").read_text()
    assert any(".ci/run" in step for step in steps)
    assert all(f"\n{target}:" in targets for target in made - {"make"})
