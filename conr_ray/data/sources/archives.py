"""Images in zip and tar archives: as of a folder, or samples as WebDataset writes them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from conr_ray.config import DataConfig
from conr_ray.data.decoders import Encoded
from conr_ray.data.inventory import Inventory, told_of
from conr_ray.data.sources.archive import (
    CUT_OFF,
    ENDINGS,
    WHY,
    ArchiveLocation,
    archive_at,
    close_with,
)
from conr_ray.data.sources.base import Contents, Int64Array, check_label_column, choose_splits
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.encoded import PendingImage
from conr_ray.data.sources.files import FoundFile
from conr_ray.data.sources.label_column import labels_in
from conr_ray.data.sources.layout import Layout, folder_of, layout_of
from conr_ray.data.sources.patterns import FileSet, split_of
from conr_ray.data.sources.picture_files import PictureFiles, ending_of, kind_of, read_file
from conr_ray.data.sources.walk import Walk, as_text
from conr_ray.errors import UserError

# What WebDataset puts beside an image, under its name.
_CLASS, _JSON = "cls", "json"
_BESIDE = frozenset({_CLASS, _JSON, "txt"})
_DEFAULT_LABEL = DataConfig.default_of("label_column")
_DEFAULT_COLUMN = DataConfig.default_of("image_column")
_OTHER_IMAGES = "other images of samples"


@dataclass(frozen=True)
class _Sample:
    """An image in an archive, with what is beside it, by ending."""

    archive: int
    file: FoundFile
    beside: dict[str, FoundFile]


class ArchiveSource(ImagesByRow):
    """The images in archives, in the order of their paths; of each, sorted by path.

    What is read is what would be read of the unpacked folder. Labels are in .cls or .json files
    beside the images, as WebDataset writes them; where there are none, folders may be classes, as
    `layout` has it. Archives may be called as splits are.
    """

    def __init__(self, config: DataConfig) -> None:
        """Keep the settings; no file is touched yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        self._set = FileSet(config.path, ENDINGS, "zip or tar archive")
        self._left_out: Counter[str] = Counter()

    def identity(self) -> dict[str, object]:
        """The archives, with their sizes and modification times, and what is read from them."""
        return {
            "source": "archive",
            "path": self._set.base.identity,
            "files": [(file.name, file.size, file.mtime_ns) for file in self._set.files],
            "splits": self.config.splits,
            "image_column": self.config.image_column,
            "label_column": self.config.label_column,
            "labels": self.config.labels,
            "on_error": self.config.on_error,
            "stored_size": self.config.stored_size,
        }

    def contents(self) -> Contents:
        """Number of images, their shape, labels and paths inside the archives."""
        labels = self._labels()
        return Contents(self.num_rows, self.image_shape, *labels, self.names)

    @property
    def labels_from(self) -> str:
        """Files or folders."""
        return "folders" if self._values is None else f".{self._label_of[0]}"

    def inventory(self) -> Inventory:
        """What was left out of the archives."""
        left_out = self._left_out + self._set.left_out
        layout = self._layout
        return replace(
            super().inventory(),
            why_no_labels="" if layout is None else layout.why,
            left_out=dict(left_out),
            why_left_out={kind: WHY[kind] for kind in left_out if kind in WHY},
        )

    @property
    def num_rows(self) -> int:
        """How many images are read."""
        return len(self._samples)

    @cached_property
    def names(self) -> list[str]:
        """Paths inside the archives; if two are the same, behind that of their archive."""
        found = [as_text(one.file.name) for one in self._samples]
        if len(set(found)) < len(found):
            above = [as_text(file.name) for file in self._chosen]
            found = [
                f"{above[one.archive]}/{name}"
                for one, name in zip(self._samples, found, strict=True)
            ]
        return found

    def at(self, row: int) -> PendingImage:
        """An image in its archive."""
        one = self._samples[row]
        archive = as_text(self._chosen[one.archive].name)
        place = f"row {row} ({archive + ': ' if archive else ''}{as_text(one.file.name)})"
        read = partial(read_file, self._archives[one.archive], one.file)
        return PendingImage(place, Encoded(read))

    @cached_property
    def _chosen(self) -> list[FoundFile]:
        """The archives that are read, by `data.splits`."""
        files = self._set.files
        splits = [split_of(file.name) for file in files]
        if self.config.splits is None or not all(splits):
            return files
        wanted = choose_splits(self.config, sorted(set(filter(None, splits))))
        return [file for file, split in zip(files, splits, strict=True) if split in wanted]

    @cached_property
    def _archives(self) -> list[ArchiveLocation]:
        base = self._set.base
        found = [archive_at(base.below(base.path_of(one.name)), one) for one in self._chosen]
        close_with(self, found)
        for archive in found:
            if archive.left_out[CUT_OFF] and self.config.on_error == "stop":
                raise UserError(
                    f"data.path={self.config.path}: {archive.path} is cut off; replace it, or set "
                    "data.on_error=skip to read what is before"
                )
        return found

    @cached_property
    def _found(self) -> list[_Sample]:
        """All images, before folders are chosen."""
        samples: list[_Sample] = []
        self._left_out.clear()
        for number, archive in enumerate(self._archives):
            pictures = PictureFiles(Walk(archive), _BESIDE)
            images: list[FoundFile] = []
            beside: dict[str, dict[str, FoundFile]] = {}
            for file in sorted(pictures, key=lambda file: file.name):
                if (ending := ending_of(file.name)) in _BESIDE:
                    beside.setdefault(_key(file.name), {})[ending] = file
                elif self._is_chosen(file.name):
                    images.append(file)
                else:
                    self._left_out[_OTHER_IMAGES] += 1
            keys = {_key(file.name) for file in images}
            for key, files in beside.items():
                if key not in keys:
                    self._left_out.update(kind_of(file.name) for file in files.values())
            self._left_out += pictures.left_out + archive.left_out
            samples += [_Sample(number, file, beside.get(_key(file.name), {})) for file in images]
        if not samples:
            found = told_of(self._left_out)
            raise UserError(
                f"data.path={self.config.path}: no images; name archives of images"
                + (f"; left out: {found}" if found else "")
            )
        return samples

    def _is_chosen(self, name: str) -> bool:
        """Whether it is the image of a sample, which may have several, such as 1.left.png."""
        wanted = self.config.image_column
        if wanted == _DEFAULT_COLUMN:
            return True
        return name.rpartition("/")[2].partition(".")[2].lower() == wanted.lower()

    @cached_property
    def _label_of(self) -> tuple[str, str]:
        """The ending of the files that hold labels, and the key in them; empty for folders."""
        name = self.config.label_column
        endings = {ending for one in self._found for ending in one.beside}
        if name is None:
            return "", ""
        if name in endings and name != _JSON:
            return name, ""
        if name == _DEFAULT_LABEL and _CLASS in endings:
            return _CLASS, ""
        keys = self._keys_of_json() if _JSON in endings else []
        if name in keys:
            return _JSON, name
        if name != _DEFAULT_LABEL:
            check_label_column(self.config, [_DEFAULT_LABEL, *sorted(endings - {_JSON}), *keys])
        return "", ""

    def _keys_of_json(self) -> list[str]:
        """Those in the file beside the first image that has one."""
        first = next(one for one in self._found if _JSON in one.beside)
        found = self._value(first, _JSON)
        return [str(key) for key in found] if isinstance(found, dict) else []

    @cached_property
    def _values(self) -> list[Any] | None:
        """What is said of the class of each image, beside it; None if nothing is."""
        ending, key = self._label_of
        if not ending:
            return None
        found = [self._value(one, ending) for one in self._samples]
        if ending == _JSON:
            found = [one.get(key) if isinstance(one, dict) else None for one in found]
        texts = [str(one) for one in found if one is not None]
        if not all(_is_whole(text) for text in texts):
            return [None if one is None else str(one) for one in found]
        return [None if one is None else int(str(one)) for one in found]

    def _value(self, one: _Sample, ending: str) -> Any:
        """The content of a file beside an image; None without one."""
        if (file := one.beside.get(ending)) is None:
            return None
        data = self._archives[one.archive].read(file.name, file.size)
        try:
            text = data.decode().strip()
            return json.loads(text) if ending == _JSON else text or None
        except (ValueError, RecursionError):
            raise UserError(
                f"data.path={self.config.path}: {as_text(file.name)} is damaged; repair it, or set "
                "data.label_column=null"
            ) from None

    @cached_property
    def _layout(self) -> Layout | None:
        """What folders stand for; None where labels are beside the images."""
        config = self.config
        if len(self._chosen) and all(split_of(file.name) for file in self._chosen):
            config = config.model_copy(update={"splits": None})
        if self._label_of[0] and config.splits is None:
            return None
        counts = Counter(folder_of(one.file.name) for one in self._found)
        return layout_of(counts, config)

    @cached_property
    def _samples(self) -> list[_Sample]:
        """The images that are read."""
        if self._layout is None:
            return self._found
        read = frozenset(self._layout.read)
        return [one for one in self._found if folder_of(one.file.name) in read]

    def _labels(self) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        if self._values is not None:
            column = pa.chunked_array([pa.array(self._values)])
            return labels_in(column, str(self.config.label_column))
        assert self._layout is not None, "folders tell"
        return self._layout.labels_of([folder_of(one.file.name) for one in self._samples])


def _key(name: str) -> str:
    """What an image and the files beside it have in common."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and len(digits) < 19
