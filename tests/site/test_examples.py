"""The programs and notebooks of examples/, with few epochs: each line runs, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.waiting import HANG_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(folder: Path, *command: str) -> str:
    """Run Python in `folder`; what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="cr", dir="/tmp") as short:
        environment["RAY_TMPDIR"] = short
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_photographs_are_clustered_and_told_apart(tmp_path: Path) -> None:
    small = ["--count", "24", "--size", "64", "--out", "runs/photos"]
    said = run(tmp_path, str(EXAMPLES / "cluster_photos.py"), *small)
    (sizes,) = re.findall(r"pictures of each cluster: \[(\d+), (\d+)\]", said)
    assert sum(map(int, sizes)) == 24
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()
    assert len(re.findall(r"\d+", said.partition("surest pictures: rows")[2])) >= 5


def test_an_own_framework_trains_in_both_stages(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "own_framework.py"), "--epochs", "6")
    accuracies = re.findall(r"in_batch (alone|with the group stage): ACC (0\.\d+)", said)
    assert [name for name, _ in accuracies] == ["alone", "with the group stage"]
    # Six epochs tell digits apart better than by chance, 0.1.
    assert all(float(accuracy) > 0.3 for _, accuracy in accuracies)


def test_an_own_framework_is_short() -> None:
    code = (EXAMPLES / "frameworks" / "in_batch.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 60


def test_a_stream_is_placed(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "predict_stream.py"), "--epochs", "6", "--batch", "400")
    assert re.findall(r"^ *(\d+) placed", said, re.MULTILINE) == ["400", "800", "899"]
    assert float(said.rpartition(" ")[2]) > 0.3


def test_the_notebook_on_conr_and_byol_runs(tmp_path: Path) -> None:
    notebook = str(EXAMPLES / "conr_and_byol.ipynb")
    said = run(tmp_path, "-m", "tests.site.notebooks", notebook, "epochs=6")
    assert all(f"<th>{name}</th>" in said for name in ("BYOL", "nearest neighbours", "CoNR"))
    assert "10 clusters of 1,797 samples" in said


def test_the_notebook_on_searches_runs(tmp_path: Path) -> None:
    notebook = str(EXAMPLES / "search_digits.ipynb")
    small = ["trials=2", "epochs=12", "folder='runs/search'"]
    said = run(tmp_path, "-m", "tests.site.notebooks", notebook, *small)
    assert re.search(r"the chosen trial has ACC 0\.\d+, the best one 0\.\d+", said)
    assert (tmp_path / "runs" / "search" / "report.html").is_file()


def test_two_nodes_train_one_run(tmp_path: Path) -> None:
    said = run(tmp_path, str(EXAMPLES / "several_nodes.py"), "--epochs", "6")
    (nodes,) = re.findall(r"^nodes: (.*)$", said, re.MULTILINE)
    assert len(set(nodes.split(", "))) == 2
    assert float(said.rpartition(" ")[2]) > 0.3
