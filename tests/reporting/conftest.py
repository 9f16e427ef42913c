from __future__ import annotations

from pathlib import Path

import pytest

from conr_ray.config import RunConfig
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import run_here, tiny_config


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on labelled digits; not to be changed."""
    return _run(tiny_config(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def byol_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `finished_run`, without a group stage."""
    config = tiny_config(schedule__group_start="never")
    return _run(config, tmp_path_factory.mktemp("runs") / "byol")


def _run(config: RunConfig, folder: Path) -> Path:
    RunDirectory(folder).claim(config, resume=False)
    run_here(config, folder)
    return folder
