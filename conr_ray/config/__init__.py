"""The config of a run: one typed, validated tree."""

from conr_ray.config.building import build, override
from conr_ray.config.names import all_field_names, check_field, differences, field_names, get_field
from conr_ray.config.reading import (
    from_yaml,
    load_config,
    load_preset,
    parse_overrides,
    parse_yaml,
    preset_names,
    read_yaml,
)
from conr_ray.config.sections import (
    BankConfig,
    DataConfig,
    ModelConfig,
    NeighborhoodConfig,
    OptimConfig,
    TrackingConfig,
    ViewsConfig,
)
from conr_ray.config.tree import RunConfig, mark_of, marked_fields, section_of, sections

__all__ = [
    "BankConfig",
    "DataConfig",
    "ModelConfig",
    "NeighborhoodConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "ViewsConfig",
    "all_field_names",
    "build",
    "check_field",
    "differences",
    "field_names",
    "from_yaml",
    "get_field",
    "load_config",
    "load_preset",
    "mark_of",
    "marked_fields",
    "override",
    "parse_overrides",
    "parse_yaml",
    "preset_names",
    "read_yaml",
    "section_of",
    "sections",
]
