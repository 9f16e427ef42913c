"""In which form images are at a path: what `data.source=auto`, and commands for new images, read.

A path's ending tells, that of a pattern too; where there is none, what is in the folder, or what
the file begins with.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pyarrow.parquet as pq
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.sources.archive import ENDINGS as ARCHIVES
from conr_ray.data.sources.base import listed
from conr_ray.data.sources.files import Location, locate
from conr_ray.data.sources.image_column import holds_images
from conr_ray.data.sources.image_list import holds_paths
from conr_ray.data.sources.listed_files import ENDINGS as LISTS
from conr_ray.data.sources.numpy_files import ENDINGS as ARRAYS
from conr_ray.data.sources.parquet_files import ENDINGS as PARQUET
from conr_ray.data.sources.patterns import FileSet, has_ending
from conr_ray.data.sources.picture_files import endings
from conr_ray.data.sources.walk import Walk
from conr_ray.errors import StorageError, UserError, one_line
from conr_ray.fields import short

# Files of a folder that are looked at.
_MOST = 10_000
_ENDINGS = {"list": LISTS, "parquet": PARQUET, "archive": ARCHIVES, "numpy": ARRAYS}
# Of files: what they begin with, or have at a place.
_MAGIC = (
    ("parquet", 0, b"PAR1"),
    ("archive", 0, b"PK\3\4"),
    ("archive", 257, b"ustar"),
    ("numpy", 0, b"\x93NUMPY"),
)
_HEAD_BYTES = 512
# Beside images, these tell about them.
_BESIDE = ("list", "numpy")


class NothingThere(UserError):
    """A path of nothing."""


def as_found(config: DataConfig) -> DataConfig:
    """`config` with the source that its path shows, if that is left open.

    Raises:
        UserError: it cannot be looked at, or fields are set that have no meaning there.
    """
    if config.source != "auto":
        return config
    assert config.path is not None, "checked by RunConfig"
    try:
        source = form_of(config.path, config.image_column)
    except NothingThere:
        # It says so when it is read; a copy in the cache may do.
        source = "folder"
    for leaf, value in config:
        used_by, unset = config.mark_of(leaf).used_by, config.default_of(leaf)
        if used_by is None or used_by[0] != "data.source" or value == unset:
            continue
        if not config.mark_of(leaf).is_used(source):
            told = listed(value) if isinstance(value, tuple) else short(str(value))
            raise UserError(
                f"data.{leaf}={told}: {config.path} is read as data.source={source}, which does "
                "not use it: leave it out"
            )
    return config.model_copy(update={"source": source})


def form_of(text: str, image_column: str = DataConfig.default_of("image_column")) -> str:
    """The `data.source` that reads the images at a path, a URI or a pattern.

    Args:
        text: the path.
        image_column: of tables, which hold images in it, or paths.

    Raises:
        UserError: there is nothing, or it cannot be looked at.
    """
    try:
        found = _by_ending(text)
        if found is None:
            location = locate(text)
            kind = location.kind()
            if kind == fs.FileType.NotFound:
                raise NothingThere(
                    f"data.path={text}: there is nothing; name a folder of images, a table or an "
                    "archive"
                )
            is_folder = kind == fs.FileType.Directory
            found = _of_folder(location) if is_folder else _by_content(location)
        return _of_table(text, image_column) if found == "parquet" else found
    except UserError:
        raise
    # Stores raise errors of many kinds, and a path with a zero byte is a ValueError.
    except Exception as error:
        raise UserError(
            f"data.path={text}: cannot be opened ({one_line(error)}); name what can be read"
        ) from None


def _by_ending(text: str) -> str | None:
    path = text.partition("?")[0] if "://" in text else text
    found = (form for form, names in _ENDINGS.items() if has_ending(path, names))
    form = next(found, None)
    # A folder may be called as files are, but for those that a server or a store would be asked of.
    is_folder = "://" not in text and locate(text).kind() == fs.FileType.Directory
    return None if is_folder else form


def _of_folder(location: Location) -> str:
    """What most of the files in a folder are."""
    pictures = endings()
    counts: Counter[str] = Counter()
    for file in islice(Walk(location, skip=True), _MOST):
        if has_ending(file.name, pictures):
            counts["folder"] += 1
            continue
        for form, names in _ENDINGS.items():
            if form not in _BESIDE and has_ending(file.name, names):
                counts[form] += 1
    return max(counts, key=lambda form: (counts[form], form == "folder"), default="folder")


def _by_content(location: Location) -> str:
    begin = location.head("", _HEAD_BYTES)
    for form, place, magic in _MAGIC:
        if begin[place:].startswith(magic):
            return form
    raise UserError(
        f"data.path={location.text}: neither a folder nor a file of a known kind; name a folder of "
        f"images, or a file that ends with {listed(sorted(set().union(*_ENDINGS.values())))}"
    )


def _of_table(text: str, image_column: str) -> str:
    """Whether Parquet files hold images or their paths."""
    schema = _schema(text)
    if schema is None or (found := schema.names.count(image_column)) > 1:
        return "parquet"
    if found and holds_images(schema.field(image_column).type):
        return "parquet"
    return "list" if holds_paths(schema.names, image_column) else "parquet"


def _schema(text: str) -> Any:
    """Of the first of some Parquet files; None if it cannot be read."""
    files = FileSet(text, PARQUET, "Parquet file")
    _ = files.files
    location = files.location_of(0)
    try:
        with location.filesystem.open_input_file(location.path) as file:
            return pq.read_schema(file)
    except StorageError:
        raise
    # Reading it tells why.
    except Exception:
        return None
