"""The script for a machine with a GPU, rehearsed on a CPU without the packages that it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
# What such a machine has not installed.
BARE = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "rich", "wandb", "optuna", "plotly", "openTSNE"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path[0] = "benchmarks"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-c", BARE, "benchmarks/gpu.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_check_runs_and_agrees(tmp_path: Path) -> None:
    told = run("check", "--out", str(tmp_path), "--device", "cpu", "--tiny")
    found = json.loads((tmp_path / "check.json").read_text())
    assert all(path["ok"] for path in found["agreement"].values()), told
    assert not [name for name, value in found.items() if "error" in value], told
    names = {"instance step, plain", "group step, plain", "group step, bank of 256", "evaluation"}
    assert {f"times/{name}" for name in names} <= set(found)
    shown = run("table", str(tmp_path / "check.json"))
    assert "| step: byol, group stage |" in shown and "| group step, plain | ms" in shown


@pytest.mark.slow
def test_a_run_that_fits_its_minutes_brings_back_curve_weights_and_assignments(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    run("train", "--out", str(out), "--device", "cpu", "--tiny", "--minutes", "0.2")
    rows = json.loads((out / "curve.json").read_text())
    assert [row["stage"] for row in rows][-1] == "group" and rows[-1]["acc"] > 0
    assert pq.read_table(out / "assignments.parquet").num_rows == 600
    about = json.loads((out / "weights.json").read_text())
    count = sum(int(np.prod(shape)) for shape in about["shapes"].values())
    assert len(np.load(out / "weights-0.npy")) == count
    assert about["epoch"] == len(rows)
    assert all(file.stat().st_size <= 16 * 2**20 for file in out.iterdir())


def test_data_are_asked_for() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "train", "--out", "nowhere", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "train needs --data" in done.stderr
