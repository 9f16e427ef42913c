"""What a command loads before it is at work: help, a plan and a report load nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import conr_ray
from conr_ray.config import load_preset
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from tests.reporting.made_searches import make_search
from tests.tiny_runs import run_here, tiny_config
from tests.waiting import HANG_S

SPACES = Path(__file__).parents[1] / "search_spaces"
# A peak that the kernel keeps for this program alone: ru_maxrss begins with that of its parent.
OBSERVED = """
import json, pathlib, runpy, sys
report, module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak_mib = int(status["VmHWM"].split()[0]) / 1024
    found = {"modules": sorted(sys.modules), "peak_mib": peak_mib}
    pathlib.Path(report).write_text(json.dumps(found))
"""
HEAVY = {"torch", "torchvision", "ray", "sklearn", "wandb", "matplotlib", "openTSNE", "numba"}
LIBRARIES = HEAVY | {"numpy", "scipy", "pandas", "pyarrow", "optuna", "plotly", "pydantic", "yaml"}


@dataclass(frozen=True)
class Observed:
    """What a command printed, and what its process was like at its end."""

    printed: str
    modules: set[str]
    peak_mib: float


def observe(folder: Path, command: str, *arguments: str) -> Observed:
    """Run a command in an empty folder, with no way to any network."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the peak memory from")
    folder.mkdir(exist_ok=True)
    report = folder.with_suffix(".json")
    no_network = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED, str(report), f"conr_ray.{command}", *arguments],
        cwd=folder,
        env={**os.environ, **no_network, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    return Observed(done.stdout, set(found["modules"]), found["peak_mib"])


def test_the_package_loads_what_is_used_of_it() -> None:
    code = (
        "import sys, conr_ray; print({*sys.modules} & {'numpy', 'torch', 'pydantic'});"
        "print([getattr(conr_ray, n).__name__ for n in conr_ray.__all__]); print(dir(conr_ray))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded, names, listed = done.stdout.splitlines()
    assert loaded == "set()"
    assert names == str(conr_ray.__all__)
    assert set(conr_ray.__all__) < set(ast.literal_eval(listed))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        conr_ray.Nothing  # noqa: B018


@pytest.mark.parametrize("command", ["train", "tune", "report"])
def test_help_loads_no_library_but_the_terminals(tmp_path: Path, command: str) -> None:
    seen = observe(tmp_path / "here", command, "--help")
    assert "usage:" in seen.printed
    assert not seen.modules & LIBRARIES


@pytest.mark.parametrize(
    ("space", "images"),
    [
        ("cifar100", "60,000, 20 classes"),
        ("fashion_mnist", "70,000, 10 classes"),
        ("stl10", "13,000, 10 classes"),
        ("imagenet_dogs", "19,500, 15 classes"),
    ],
)
def test_a_plan_needs_no_images(tmp_path: Path, space: str, images: str) -> None:
    here = tmp_path / "here"
    seen = observe(here, "tune", "--space", str(SPACES / f"{space}.yaml"), "--plan")
    assert f"images     {images}, as published; they are not prepared here yet\n" in seen.printed
    assert "trials at once" in seen.printed
    assert not seen.modules & (HEAVY | {"optuna"})
    assert not list(here.iterdir())


def test_a_plan_uses_the_images_that_are_prepared(tmp_path: Path) -> None:
    images = open_data(load_preset("digits").data)
    arguments = ["--space", str(SPACES / "digits.yaml"), "--set", "data.limit=1000", "--plan"]
    seen = observe(tmp_path / "here", "tune", *arguments)
    assert images.num_rows > 1000
    assert "images     1,000, 10 classes, as prepared by an earlier run\n" in seen.printed
    assert not seen.modules & HEAVY


def test_the_report_of_a_search_is_light(tmp_path: Path) -> None:
    search = make_search(tmp_path / "search", ("complete",) * 8 + ("stopped", "failed"))
    seen = observe(tmp_path / "here", "report", search.uri)
    assert "report.html" in seen.printed
    # Importances come from scikit-learn's trees.
    assert not seen.modules & (HEAVY - {"sklearn"})
    assert "sklearn.gaussian_process" not in seen.modules
    assert seen.peak_mib < 500


@pytest.mark.slow
def test_the_report_of_a_run_is_light(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = tiny_config()
    RunDirectory(folder).claim(config, resume=False)
    run_here(config, folder)
    with_map = observe(tmp_path / "first", "report", str(folder))
    again = observe(tmp_path / "again", "report", str(folder))
    # A map is drawn once, by openTSNE and scikit-learn.
    assert not with_map.modules & (HEAVY - {"sklearn", "openTSNE"})
    assert not again.modules & (HEAVY | {"scipy.stats"})
    assert max(with_map.peak_mib, again.peak_mib) < 500


def test_a_worker_does_not_wait_for_what_few_runs_need() -> None:
    code = (
        "import sys, conr_ray.engine.run; "
        "print(sorted({'scipy.optimize', 'scipy.sparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
