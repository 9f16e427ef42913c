"""Any folder of images, local or in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import Contents, Int64Array, check_label_column, listed
from conr_ray.data.sources.encoded import EncodedSource, PendingImage, open_encoded
from conr_ray.data.sources.files import locate, one_line
from conr_ray.errors import UserError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"})


class FolderSource(EncodedSource):
    """Images below a folder, sorted by path; hidden files and folders are skipped.

    The immediate sub-folders are the classes if there are at least two of them and every image is
    in one; otherwise there are no labels. `data.classes` restricts reading to these sub-folders.
    """

    def __init__(self, config: DataConfig) -> None:
        """Refuse label columns other than `label`; no file is touched yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        check_label_column(config, ["label"])
        self._location = locate(config.path)

    def identity(self) -> dict[str, object]:
        """The folder, what is read from it, and every image's size and modification time."""
        return {
            "source": "folder",
            "path": self._location.identity,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
            "files": [(name, info.size, info.mtime_ns) for name, info in self._files],
        }

    def contents(self) -> Contents:
        """Number of images, the shape of the first one, classes and paths inside the folder."""
        names = [name for name, _ in self._files]
        labels, class_names = self._labels(names)
        return Contents(len(names), self.image_shape, labels, class_names, names)

    def _pending(self) -> Iterator[PendingImage]:
        for row, (name, _) in enumerate(self._files):
            yield PendingImage(f"row {row} ({name})", partial(self._open, name))

    def _open(self, name: str) -> Image.Image:
        location = self._location
        with location.filesystem.open_input_stream(f"{location.path}/{name}") as stream:
            return open_encoded(stream.read())

    @cached_property
    def _files(self) -> list[tuple[str, Any]]:
        """Paths inside the folder, sorted, each with its Arrow FileInfo."""
        text, root = self._location.text, self._location.path.rstrip("/")
        try:
            kind = self._location.filesystem.get_file_info(root).type
            if kind != fs.FileType.Directory:
                problem = "no such folder" if kind == fs.FileType.NotFound else "not a folder"
                raise UserError(f"data.path={text}: {problem}; name a folder of images")
            found = self._listed(root)
        except OSError as error:
            raise UserError(
                f"data.path={text}: cannot be listed ({one_line(error)}); name a folder of images"
            ) from None
        if not found:
            raise UserError(
                f"data.path={text}: no images; name a folder with files of the types "
                f"{listed(sorted(EXTENSIONS))}"
            )
        return sorted(((info.path[len(root) + 1 :], info) for info in found), key=itemgetter(0))

    def _listed(self, root: str) -> list[Any]:
        """FileInfos of all images below `root`, or of those in the chosen classes."""
        if self.config.classes is None:
            return self._images_below(root, root)
        found = []
        # The other sub-folders, of which there may be many, are not even listed.
        for name in dict.fromkeys(self.config.classes):
            below = [] if "/" in name else self._images_below(f"{root}/{name}", root)
            if not below:
                raise UserError(
                    f"data.classes={listed(self.config.classes)}: {self._location.text} has no "
                    f"sub-folder {name} with images; leave it out or add it"
                )
            found += below
        return found

    def _images_below(self, folder: str, root: str) -> list[Any]:
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        infos: list[Any] = self._location.filesystem.get_file_info(selector)
        return [info for info in infos if _is_image(info, len(root) + 1)]

    def _labels(self, names: list[str]) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        if self.config.label_column is None or not all("/" in name for name in names):
            return None, None
        folders = [name.partition("/")[0] for name in names]
        classes = sorted(set(folders))
        if len(classes) < 2:
            return None, None
        number = {name: label for label, name in enumerate(classes)}
        return np.array([number[folder] for folder in folders], np.int64), tuple(classes)


def _is_image(info: Any, root_length: int) -> bool:
    if info.type != fs.FileType.File or info.extension.lower() not in EXTENSIONS:
        return False
    parts = info.path[root_length:].split("/")
    return not any(part.startswith(".") for part in parts)
