"""Where images come from: one class per kind of source, by `data.source`.

To add a source, write a module with a sub-class of `ImageSource`, name it in `SOURCES` and in
`DataConfig.source`, and let its test inherit the conformance suite.
"""

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import Contents, ImageSource
from conr_ray.data.sources.digits import DigitsSource
from conr_ray.data.sources.folder import FolderSource
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.data.sources.torchvision import TorchvisionSource

SOURCES: dict[str, type[ImageSource]] = {
    "digits": DigitsSource,
    "torchvision": TorchvisionSource,
    "parquet": ParquetSource,
    "folder": FolderSource,
}


def make_source(config: DataConfig) -> ImageSource:
    """The source that `config` describes; raises UserError where its settings do not fit it."""
    return SOURCES[config.source](config)


__all__ = ["SOURCES", "Contents", "ImageSource", "make_source"]
