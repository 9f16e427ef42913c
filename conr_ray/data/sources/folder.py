"""Any folder of images, local or in an object store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter

from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.decoders import Encoded
from conr_ray.data.inventory import Inventory, told_of
from conr_ray.data.sources.base import Contents, check_label_column, listed
from conr_ray.data.sources.encoded import EncodedSource, PendingImage
from conr_ray.data.sources.files import FoundFile, locate
from conr_ray.data.sources.layout import Layout, folder_of, layout_of
from conr_ray.data.sources.picture_files import PictureFiles, endings, read_file
from conr_ray.data.sources.walk import Walk, as_text
from conr_ray.errors import UserError, one_line


class FolderSource(EncodedSource):
    """Images below a folder, sorted by path; see `Walk` and `PictureFiles` for which these are.

    Sub-folders are classes, splits or neither by `data.labels`; see `layout`. `data.classes`
    restricts reading to these immediate sub-folders. Bytes of names that are no UTF-8 are escaped.
    """

    def __init__(self, config: DataConfig) -> None:
        """Refuse label columns other than `label`; no file is touched yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        check_label_column(config, ["label"])
        self._location = locate(config.path)
        classes = config.classes
        # The other sub-folders, of which there may be many, are not even listed.
        chosen = [""] if classes is None else [name for name in classes if name and "/" not in name]
        self._pictures = PictureFiles(Walk(self._location, chosen, config.on_error == "skip"))

    def identity(self) -> dict[str, object]:
        """The folder, what is read from it, and every image's size and modification time."""
        return {
            "source": "folder",
            "path": self._location.identity,
            "label_column": self.config.label_column,
            "labels": self.config.labels,
            "on_error": self.config.on_error,
            "stored_size": self.config.stored_size,
            "files": [(file.name, file.size, file.mtime_ns) for file in self._files],
        }

    def contents(self) -> Contents:
        """Number of images, their shape, classes and paths inside the folder."""
        names = [as_text(file.name) for file in self._files]
        labels = self._layout.labels_of([folder_of(file.name) for file in self._files])
        return Contents(len(names), self.image_shape, *labels, names)

    @property
    def labels_from(self) -> str:
        """The folders."""
        return "folders"

    def inventory(self) -> Inventory:
        """What was left out on the way, and why sub-folders are no classes."""
        return replace(
            super().inventory(),
            why_no_labels=self._layout.why,
            left_out=dict(self._pictures.left_out),
            why_left_out=self._pictures.why_left_out,
        )

    @property
    def is_remote(self) -> bool:
        """Whether the folder is in a store or on a web server."""
        return not self._location.is_local

    def _pending(self) -> Iterator[PendingImage]:
        location = self._location
        for row, file in enumerate(self._files):
            path = (
                os.fsencode(os.path.join(location.path, file.name)) if location.is_local else None
            )
            place = f"row {row} ({as_text(file.name)})"
            yield PendingImage(place, Encoded(partial(read_file, location, file)), path)

    @property
    def _files(self) -> list[FoundFile]:
        """The images that are read, sorted by path."""
        return self._found[0]

    @property
    def _layout(self) -> Layout:
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[list[FoundFile], Layout]:
        text = self._location.text
        try:
            kind = self._location.kind()
            if kind != fs.FileType.Directory:
                problem = "no such folder" if kind == fs.FileType.NotFound else "not a folder"
                raise UserError(f"data.path={text}: {problem}; name a folder of images")
            found = sorted(self._pictures, key=attrgetter("name"))
        except UserError:
            raise
        # A path with a zero byte is a ValueError.
        except (OSError, ValueError) as error:
            remedy = "name a folder of images"
            if isinstance(error, PermissionError) and self.config.on_error == "stop":
                remedy += ", or set data.on_error=skip to leave out what is closed to you"
            raise UserError(
                f"data.path={text}: cannot be listed ({one_line(error)}); {remedy}"
            ) from None
        self._check_classes(found)
        if not found:
            raise self._nothing()
        layout = layout_of(Counter(folder_of(file.name) for file in found), self.config)
        read = frozenset(layout.read)
        return [file for file in found if folder_of(file.name) in read], layout

    def _check_classes(self, found: list[FoundFile]) -> None:
        classes = self.config.classes or ()
        with_images = {file.name.partition("/")[0] for file in found}
        for name in classes:
            if name not in with_images:
                raise UserError(
                    f"data.classes={listed(classes)}: {self._location.text} has no sub-folder "
                    f"{name} with images; leave it out or add it"
                )

    def _nothing(self) -> UserError:
        remedy = f"name a folder with files of the types {listed(endings())}"
        if left_out := told_of(self._pictures.left_out):
            remedy += f"; left out: {left_out}"
        if remedies := self._pictures.remedies:
            remedy += f" ({remedies})"
        return UserError(f"data.path={self._location.text}: no images; {remedy}")
