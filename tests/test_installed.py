"""What is there after `pip install`: the program, the package's files, other packages' parts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conr_ray
from conr_ray.__main__ import COMMANDS
from conr_ray.remedies import described
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]
POINTS = """
[conr_ray.frameworks]
mirror = own_parts.mirror

[conr_ray.backbones]
average = own_parts:average

[conr_ray.sources]
stripes = own_parts:Stripes
"""
PARTS = '''
import numpy as np
import torch
from torch import nn

from conr_ray.data.sources.base import Contents, Source


class Average(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.out_features = 16
        self.layer = nn.Linear(4 * channels, 16)

    def forward(self, images):
        return self.layer(nn.functional.adaptive_avg_pool2d(images, 2).flatten(1))


def average(row_shape, stem, widths):
    return Average(row_shape[0])


class Stripes(Source):
    """Stripes across or along, with noise."""

    labels_from = ""

    def identity(self):
        return {"source": "stripes", "version": 1}

    def contents(self):
        return Contents(64, (1, 8, 8), np.arange(64) % 2, ("across", "along"))

    def blocks(self):
        noise = np.random.default_rng(0).integers(0, 60, (64, 1, 8, 8)).astype(np.uint8)
        for row in range(0, 64, 2):
            noise[row, 0, ::2] += 150
            noise[row + 1, 0, :, ::2] += 150
        yield noise
'''
MIRROR = """
from conr_ray.method.frameworks.simsiam import Config, Framework as SimSiam


class Framework(SimSiam):
    pass
"""


def run(*command: str, path: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    where = os.pathsep.join(map(str, dict.fromkeys([path, ROOT])))
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": where, "WANDB_MODE": "disabled", **variables},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with one that has a framework, a backbone and a source."""
    (tmp_path / "site" / "own_parts").mkdir(parents=True)
    (tmp_path / "site" / "own_parts" / "__init__.py").write_text(PARTS)
    (tmp_path / "site" / "own_parts" / "mirror.py").write_text(MIRROR)
    add_metadata(tmp_path / "site", "own_parts", POINTS)
    return tmp_path / "site"


def add_metadata(site: Path, name: str, points: str) -> None:
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(points)


def test_the_program_lists_and_runs_the_commands() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; from conr_ray.__main__ import main; main();"
    listed = run("-c", code + "print({'torch', 'pydantic', 'rich'} & {*sys.modules})").stdout
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert listed.endswith("\nset()\n")
    files = [*(ROOT / "conr_ray").glob("*.py"), *(ROOT / "conr_ray").glob("*/__main__.py")]
    runs = {file for file in files if "run_command(" in file.read_text()}
    names = {file.parent.name if file.stem == "__main__" else file.stem for file in runs}
    assert set(COMMANDS) == names - {"command_line", "conr_ray"}
    assert run("-m", "conr_ray", "--version").stdout == f"conr_ray {conr_ray.__version__}\n"
    told = run("-m", "conr_ray", "train", "--preset", "digts")
    assert (told.returncode, told.stderr) == (
        2,
        "error: preset digts: no such preset; did you mean digits?\n",
    )
    told = run("-m", "conr_ray", "trian")
    assert (told.returncode, told.stderr) == (
        2,
        "error: 'trian': no such command; did you mean train?\n",
    )


def test_a_missing_extra_is_named() -> None:
    def remedy(module: str) -> str:
        error = ModuleNotFoundError(f"No module named {module!r}", name=module)
        return described(error).rpartition(": ")[2]

    assert remedy("uvicorn") == "pip install 'conr_ray[browse]'"
    assert remedy("starlette.routing") == "pip install 'conr_ray[browse]'"
    assert remedy("onnxruntime") == "pip install 'conr_ray[export]'"
    assert remedy("torch") == remedy("sklearn") == "install conr_ray again, with constraints.txt"


def test_other_packages_add_frameworks_backbones_and_sources(site: Path, tmp_path: Path) -> None:
    settings = {
        "data.source": "stripes",
        "model.backbone": "average",
        "model.framework": "mirror",
        "mirror.predictor_lr_factor": "2",
        "optim.batch_size": "16",
        "schedule.epochs": "1",
        "schedule.warmup_epochs": "0",
        "schedule.group_start": "never",
        "clustering.num_clusters": "2",
    }
    words = [word for pair in settings.items() for word in ("--set", "=".join(pair))]
    storage = ["--storage", str(tmp_path / "runs"), "--name", "one"]
    arguments = ["train", "--preset", "digits", "--local", *storage, *words]
    done = run("-m", "conr_ray", *arguments, path=site, CONR_RAY_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "data: 64 images 8x8 grey, labels: 2 classes" in done.stdout
    assert "epoch 1 of the instance stage (mirror alone)" in done.stdout
    assert (tmp_path / "runs" / "one" / "assignments.parquet").exists()
    told = run("-m", "conr_ray", *arguments, CONR_RAY_CACHE=str(tmp_path / "cache"))
    assert told.returncode == 2 and "no such" in told.stderr and told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            "[conr_ray.frameworks]\nbyol = a.b",
            "frameworks byol: the name is conr_ray's own: renam",
        ),
        ("[conr_ray.frameworks]\nmirror = z.b", "the name is that of package own_parts: rename or"),
        ("[conr_ray.frameworks]\na-b = a.b", "frameworks a-b: a name has letters, digits and _ on"),
    ],
)
def test_names_that_clash_are_refused_in_a_line(site: Path, points: str, message: str) -> None:
    add_metadata(site, "second", points)
    told = run("-m", "conr_ray", "train", "--preset", "digits", "--local", path=site)
    assert told.returncode == 2 and message in told.stderr, told.stderr
    assert told.stderr.startswith("error: package second: ") and told.stderr.count("\n") == 1


def test_a_part_that_cannot_be_imported_is_named(site: Path) -> None:
    add_metadata(site, "second", "[conr_ray.frameworks]\nlost = nowhere.lost")
    words = ["--preset", "digits", "--set", "model.framework=lost", "--local"]
    told = run("-m", "conr_ray", "train", *words, path=site)
    assert told.returncode == 2 and told.stderr.count("\n") == 1
    assert "frameworks lost=nowhere.lost cannot be imported (ModuleNotFoundError" in told.stderr
