"""Which fields of a config affect the instance stage that runs share, by their marks."""

from __future__ import annotations

from typing import Any

from conr_ray.config import RunConfig, mark_of, marked_fields, override, section_of


def shapes_trunk(field: str) -> bool:
    """Whether runs that differ in the dotted `field` differ before their group stages."""
    mark = mark_of(field)
    of_another_stage = mark.stage is not None or field == "schedule.group_start"
    return not of_another_stage and mark.shapes_rows is not False


def trunk_config(config: RunConfig) -> RunConfig:
    """The config of the trunk: `config` without a group stage.

    Fields that do not affect it have their defaults.
    """
    framework = config.model.framework
    own = section_of(framework)
    assert own is not None
    fields = [name for name, _ in marked_fields()]
    fields += [f"{framework}.{leaf}" for leaf in own.model_fields]
    neutral = {name: _default_of(name) for name in fields if not shapes_trunk(name)}
    # A trunk writes checkpoints as often as its run.
    often = {f"checkpoint.{n}": getattr(config.checkpoint, n) for n in ("every", "every_minutes")}
    own_settings = {**often, "checkpoint.keep": 1}
    trunk = {"schedule.group_start": "never", "tracking.wandb": "off"}
    return override(config, {**neutral, **own_settings, **trunk})


def _default_of(field: str) -> Any:
    section, _, leaf = field.rpartition(".")
    kind = section_of(section)
    assert kind is not None
    return kind.default_of(leaf)
