"""The commands of docs/start.md, as they stand there, on a folder of pictures."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frozen.test_photos import photos  # noqa: F401
from tests.waiting import HANG_S
from tools.newcomer import commands

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# A view of fewer pixels and fewer epochs show as well that each command works.
SMALL = ["--set", "views.size=64", "--set", "data.stored_size=64", "--set", "schedule.epochs=4"]


def test_each_command_runs_as_written(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    lines = "\n".join(commands(ROOT / "docs" / "start.md"))
    written = re.findall(r"^python -m conr_ray\.(\w+) (.*)$", lines, re.MULTILINE)
    assert [module for module, _ in written] == ["train", "report", "browse", "predict", "report"]
    (tmp_path / "photos").symlink_to(photos)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for module, arguments in written:
        # The page stays open until it is ended: tests/browsing looks at it.
        if module == "browse":
            continue
        command = [sys.executable, "-m", f"conr_ray.{module}", *shlex.split(arguments)]
        command += SMALL if module == "train" else []
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S
        )
        assert done.returncode == 0, done.stderr
    for file in ("runs/mine/report.html", "runs/mine/clusters.csv", "predicted/report.html"):
        assert (tmp_path / file).stat().st_size > 500
