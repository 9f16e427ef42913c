"""Which fields of a config shape the instance stage that runs share."""

from __future__ import annotations

from typing import Any

from conr_ray.config import RunConfig, override

# Fields without a part in the instance stage, at values that any config can have.
_GROUP_STAGE_FIELDS: dict[str, Any] = {
    "schedule.group_start": "never",
    "schedule.relax_epochs": 0,
    "neighborhood.kind": "euclidean",
    "neighborhood.k1": 1,
    "neighborhood.k2": 1,
    "neighborhood.k": 1,
    "boundary.initial_fraction": 1.0,
    "bank.size": 0,
    "bank.dtype": "fp32",
    "bank.sharded": True,
    "views.crop_scale_group_stage": [1.0, 1.0],
    "views.group_stage_strength": 1.0,
    "optim.group_stage_lr_factor": 1.0,
    "optim.group_stage_predictor_lr_factor": 1.0,
    "optim.group_loss_weight": 1.0,
    "evaluation.neighbors": False,
    "evaluation.snapshot_every": None,
}


def shapes_trunk(field: str) -> bool:
    """Whether runs that differ in the dotted `field` differ before their group stages."""
    return field not in _GROUP_STAGE_FIELDS and field.partition(".")[0] not in (
        "checkpoint",
        "tracking",
    )


def trunk_config(config: RunConfig) -> RunConfig:
    """The run without a group stage that `config` is until its group stage begins."""
    return override(config, {**_GROUP_STAGE_FIELDS, "checkpoint.keep": 1, "tracking.wandb": "off"})
