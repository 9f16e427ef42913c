"""Where samples come from: one class per kind of source, by `data.source`.

Other packages add sources by entry points: see `conr_ray.plugins`. To add one here, write a module
with a sub-class of `Source`, name it in `SOURCES` and in `OWN_SOURCES` of the config, and let its
test inherit the conformance suite.
"""

from conr_ray import plugins
from conr_ray.config import DataConfig
from conr_ray.config.samples import OWN_SOURCES
from conr_ray.data.sources.base import Contents, Source
from conr_ray.data.sources.digits import DigitsSource
from conr_ray.data.sources.folder import FolderSource
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.torchvision import TorchvisionSource
from conr_ray.data.sources.vectors import VectorsSource

SOURCES: dict[str, type[Source]] = {
    "digits": DigitsSource,
    "torchvision": TorchvisionSource,
    "parquet": ParquetSource,
    "folder": FolderSource,
    "vectors": VectorsSource,
}


def make_source(config: DataConfig) -> Source:
    """The source that `config` describes; raises UserError if its settings do not fit it."""
    if config.source in SOURCES:
        return SOURCES[config.source](config)
    point = plugins.plugins(plugins.SOURCES, OWN_SOURCES)[config.source]
    made: Source = plugins.loaded(plugins.SOURCES, point)(config)
    return made


__all__ = ["SOURCES", "Contents", "Source", "make_source"]
