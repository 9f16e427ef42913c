"""Any folder of images, local or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property, partial
from operator import attrgetter

import numpy as np
from PIL import Image
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import Contents, Int64Array, check_label_column, listed
from conr_ray.data.sources.encoded import MOST_BYTES, EncodedSource, PendingImage, open_encoded
from conr_ray.data.sources.files import FoundFile, Location, locate
from conr_ray.errors import UserError, one_line

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"})


class FolderSource(EncodedSource):
    """Images below a folder, sorted by path; hidden files and folders are skipped.

    The immediate sub-folders are the classes if there are at least two of them and every image is
    in one; otherwise there are no labels. `data.classes` restricts reading to these sub-folders.
    Links are followed, but each folder is read once. Bytes of names that are no UTF-8 are escaped.
    """

    def __init__(self, config: DataConfig) -> None:
        """Refuse label columns other than `label`; no file is touched yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        check_label_column(config, ["label"])
        self._location = locate(config.path)
        # Below the folder, but no images by their names.
        self._others: list[FoundFile] = []

    def identity(self) -> dict[str, object]:
        """The folder, what is read from it, and every image's size and modification time."""
        return {
            "source": "folder",
            "path": self._location.identity,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
            "files": [(file.name, file.size, file.mtime_ns) for file in self._files],
        }

    def contents(self) -> Contents:
        """Number of images, the shape of the first one, classes and paths inside the folder."""
        names = [as_text(file.name) for file in self._files]
        labels, class_names = self._labels(names)
        return Contents(len(names), self.image_shape, labels, class_names, names, self._note)

    def _pending(self) -> Iterator[PendingImage]:
        for row, file in enumerate(self._files):
            yield PendingImage(
                f"row {row} ({as_text(file.name)})", partial(open_file, self._location, file)
            )

    @property
    def _note(self) -> str:
        """How many files are no images by their names."""
        if not self._others:
            return ""
        endings = {os.path.splitext(file.name)[1].lower() or "none" for file in self._others}
        return (
            f"data.path={self._location.text}: {len(self._others)} files are left out: their "
            f"endings ({listed(sorted(endings))}) are not those of images"
        )

    @cached_property
    def _files(self) -> list[FoundFile]:
        """The images inside the folder, sorted by path."""
        text, root = self._location.text, self._location.path.rstrip("/")
        try:
            kind = self._location.filesystem.get_file_info(root).type
            if kind != fs.FileType.Directory:
                problem = "no such folder" if kind == fs.FileType.NotFound else "not a folder"
                raise UserError(f"data.path={text}: {problem}; name a folder of images")
            found = self._listed()
        except UserError:
            raise
        # A path with a zero byte is a ValueError.
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.path={text}: cannot be listed ({one_line(error)}); name a folder of images"
            ) from None
        if not found:
            raise UserError(
                f"data.path={text}: no images; name a folder with files of the types "
                f"{listed(sorted(EXTENSIONS))}"
            )
        return sorted(found, key=attrgetter("name"))

    def _listed(self) -> list[FoundFile]:
        """All images, or those in the chosen classes."""
        classes = self.config.classes
        # The other sub-folders, of which there may be many, are not even listed.
        chosen = [""] if classes is None else [name for name in classes if name and "/" not in name]
        found: list[FoundFile] = []
        for file in self._location.files_below(chosen):
            if not any(part.startswith(".") for part in file.name.split("/")):
                (found if is_image(file.name) else self._others).append(file)
        with_images = {file.name.partition("/")[0] for file in found}
        for name in classes or ():
            if name not in with_images:
                raise UserError(
                    f"data.classes={listed(classes or ())}: {self._location.text} has no "
                    f"sub-folder {name} with images; leave it out or add it"
                )
        return found

    def _labels(self, names: list[str]) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        if self.config.label_column is None or not all("/" in name for name in names):
            return None, None
        folders = [name.partition("/")[0] for name in names]
        classes = sorted(set(folders))
        if len(classes) < 2:
            return None, None
        number = {name: label for label, name in enumerate(classes)}
        return np.array([number[folder] for folder in folders], np.int64), tuple(classes)


def open_file(folder: Location, file: FoundFile) -> Image.Image:
    """An image of a folder; pixels are decoded on use."""
    if file.size > MOST_BYTES:
        raise ValueError(f"{file.size:,} bytes, more than {MOST_BYTES:,}")
    data = folder.read(file.name)
    if len(data) < file.size and not folder.is_local:
        # Of an answer that was cut short a store's library need not notice it.
        raise OSError(f"{len(data):,} of {file.size:,} bytes have arrived")
    return open_encoded(data)


def is_image(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return os.path.splitext(name)[1][1:].lower() in EXTENSIONS


def as_text(name: str) -> str:
    """A path for people and tables, which have no place for bytes that are no UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
