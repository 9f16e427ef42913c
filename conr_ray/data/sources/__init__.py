"""Where samples come from: one class per kind of source, by `data.source`.

Other packages add sources by entry points: see `conr_ray.plugins`. To add one here, write a module
with a sub-class of `Source`, name it in `SOURCES` and in `OWN_SOURCES` of the config, and let its
test inherit the conformance suite.
"""

from conr_ray import plugins
from conr_ray.config import DataConfig
from conr_ray.config.samples import OWN_SOURCES
from conr_ray.data.sources.archives import ArchiveSource
from conr_ray.data.sources.base import Contents, Source
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.digits import DigitsSource
from conr_ray.data.sources.folder import FolderSource
from conr_ray.data.sources.forms import as_found
from conr_ray.data.sources.image_list import ListSource
from conr_ray.data.sources.numpy_files import NumpySource
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.torchvision import TorchvisionSource
from conr_ray.data.sources.vectors import VectorsSource

SOURCES: dict[str, type[Source]] = {
    "digits": DigitsSource,
    "torchvision": TorchvisionSource,
    "parquet": ParquetSource,
    "folder": FolderSource,
    "list": ListSource,
    "archive": ArchiveSource,
    "numpy": NumpySource,
    "vectors": VectorsSource,
}

# Those of which an image can be opened without the others.
BY_ROW = frozenset(name for name, source in SOURCES.items() if issubclass(source, ImagesByRow))


def make_source(config: DataConfig) -> Source:
    """The source that `config` describes, which `data.source=auto` leaves to what is there.

    Raises UserError if its settings do not fit it.
    """
    config = as_found(config)
    if config.source in SOURCES:
        return SOURCES[config.source](config)
    point = plugins.plugins(plugins.SOURCES, OWN_SOURCES)[config.source]
    made: Source = plugins.loaded(plugins.SOURCES, point)(config)
    return made


__all__ = ["BY_ROW", "SOURCES", "Contents", "Source", "make_source"]
