"""The config of a run: one typed, validated tree."""

from conr_ray.config.building import build, check_value, override
from conr_ray.config.declared import as_scalar, from_scalar, kind_of, typed
from conr_ray.config.names import all_field_names, check_field, differences, field_names, get_field
from conr_ray.config.networks import ModelConfig
from conr_ray.config.reading import (
    from_yaml,
    load_config,
    load_preset,
    parse_overrides,
)
from conr_ray.config.samples import MOST_STORED_PIXELS, OWN_SIDE, DataConfig, ViewsConfig
from conr_ray.config.sections import (
    BankConfig,
    NeighborhoodConfig,
    OptimConfig,
    TrackingConfig,
)
from conr_ray.config.tree import RunConfig, mark_of, marked_fields, section_of, sections
from conr_ray.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from conr_ray.preset_files import preset_names

__all__ = [
    "MOST_STORED_PIXELS",
    "OWN_SIDE",
    "BankConfig",
    "DataConfig",
    "ModelConfig",
    "NeighborhoodConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "ViewsConfig",
    "all_field_names",
    "as_scalar",
    "build",
    "check_field",
    "check_value",
    "differences",
    "dump_yaml",
    "field_names",
    "from_scalar",
    "from_yaml",
    "get_field",
    "kind_of",
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
    "typed",
]
