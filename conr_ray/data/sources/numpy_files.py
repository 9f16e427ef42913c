"""Images in NumPy's .npy and .npz files.

Shapes: n images, c channels, h and w pixels.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import (
    Contents,
    Int64Array,
    check_label_column,
    choose_splits,
    listed,
)
from conr_ray.data.sources.by_row import ImagesByRow
from conr_ray.data.sources.encoded import PendingImage
from conr_ray.data.sources.fetching import opened_here
from conr_ray.data.sources.files import locate
from conr_ray.data.sources.label_column import labels_in
from conr_ray.data.sources.layout import SPLITS
from conr_ray.errors import UserError, one_line

ENDINGS = frozenset({"npy", "npz"})
# What people call the arrays; `data.image_column` and `data.label_column` come first.
_IMAGES = ("image", "images", "x", "img", "imgs", "data", "arr_0")
_LABELS = ("label", "labels", "y", "target", "targets", "arr_1")
_DEFAULT_IMAGES = DataConfig.default_of("image_column")
_DEFAULT_LABELS = DataConfig.default_of("label_column")
# The brightest pixel is the least of these that fits, as for arrays that a program hands over; of
# whole numbers beyond them, that of 16 bits.
_BRIGHTEST = (1, 16, 255)
_CHANNELS = (1, 3, 4)
_BLOCK = 1024


@dataclass(frozen=True)
class _Part:
    """The images of a split, all if there are none, and their labels."""

    name: str
    split: str | None
    images: NDArray[Any]
    labels: NDArray[Any] | None


class NumpySource(ImagesByRow):
    """The images of an array (n, h, w), (n, h, w, c) or (n, c, h, w), with 1, 3 or 4 channels.

    Bytes are kept; other numbers are spread over 0..255. Of an .npz file, arrays are found by
    `data.image_column` and `data.label_column`, or by usual names (images, x, labels, y), also with
    those of splits (x_train, test_images).
    """

    def __init__(self, config: DataConfig) -> None:
        """Find the file system of `data.path`; no file is opened yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        self._location = locate(config.path)

    def identity(self) -> dict[str, object]:
        """The file with its size and modification time, and what is read from it."""
        try:
            file = self._location.file()
        except FileNotFoundError:
            raise self._refusal("no such file; name a .npy or .npz file") from None
        return {
            "source": "numpy",
            "path": self._location.identity,
            "file": (file.size, file.mtime_ns),
            "splits": self.config.splits,
            "image_column": self.config.image_column,
            "label_column": self.config.label_column,
            "on_error": self.config.on_error,
            "stored_size": self.config.stored_size,
        }

    @property
    def has_files(self) -> bool:
        """They are pixels."""
        return False

    def contents(self) -> Contents:
        """Number of images, their shape, and labels."""
        labels = self._labels()
        return Contents(self.num_rows, self.image_shape, *labels)

    @property
    def labels_from(self) -> str:
        """An array."""
        return f"array {self._label_name}"

    @property
    def num_rows(self) -> int:
        """How many images there are."""
        return sum(len(part.images) for part in self._parts)

    @property
    def names(self) -> None:
        """Rows have none."""
        return None

    def at(self, row: int) -> PendingImage:
        """The image of a row of all parts."""
        offset = row
        for part in self._parts:
            if offset < len(part.images):
                break
            offset -= len(part.images)
        where = f"row {offset} of {part.name}" if len(self._parts) > 1 else f"row {row}"
        first = self._are_channels_first[part.name]
        return PendingImage(where, partial(_picture, part.images, offset, first, self._brightest))

    @cached_property
    def _are_channels_first(self) -> dict[str, bool]:
        return {part.name: self._is_channels_first(part) for part in self._parts}

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"data.path={self.config.path}: {problem}")

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays of the file, by name; that of a .npy file has none."""
        try:
            file = opened_here(self._location)
            if file.read(2) != b"PK":
                return {"": _mapped(file)}
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            return {name: _Lazy(loaded, name) for name in loaded.files}  # type: ignore[misc]
        except FileNotFoundError:
            problem = "no such file; name a .npy or .npz file"
        except UserError:
            raise
        # Of a damaged file NumPy raises errors of many kinds.
        except Exception as error:
            problem = f"cannot be read ({one_line(error)}); save plain numbers by numpy.savez"
        raise self._refusal(problem)

    @cached_property
    def _chosen(self) -> dict[str | None, tuple[str, str | None]]:
        """For each split the names of its images and labels; None is the split of all."""
        found: dict[tuple[str, str | None], str] = {}
        for name in self._arrays:
            word, split = _parsed(name)
            found.setdefault((word, split), name)
        splits = list(dict.fromkeys(split for _, split in found))
        wanted = self.config.image_column
        if "" in self._arrays:
            return {None: ("", None)}
        if wanted in self._arrays:
            split = _parsed(wanted)[1]
            return {split: (wanted, self._labels_of(found, split))}
        chosen = {}
        for split in splits if wanted == _DEFAULT_IMAGES else ():
            names = [found[word, split] for word in _IMAGES if (word, split) in found]
            if names:
                chosen[split] = names[0], self._labels_of(found, split)
        if not chosen:
            raise UserError(
                f"data.image_column={wanted}: {self.config.path} has no such array; choose from "
                f"{listed(self._arrays)}"
            )
        return {None: chosen[None]} if None in chosen else chosen

    def _labels_of(self, found: dict[tuple[str, str | None], str], split: str | None) -> str | None:
        wanted = self.config.label_column
        if wanted is None:
            return None
        if wanted != _DEFAULT_LABELS:
            word, own = _parsed(wanted)
            name = found.get((word, own or split))
            if name is None:
                check_label_column(self.config, list(self._arrays))
            return name
        return next((found[word, split] for word in _LABELS if (word, split) in found), None)

    @property
    def _label_name(self) -> str:
        return next((name for _, name in self._chosen.values() if name), "")

    @cached_property
    def _parts(self) -> list[_Part]:
        chosen = self._chosen
        if "" in self._arrays:
            check_label_column(self.config, [_DEFAULT_LABELS])
        if self.config.splits is not None:
            available = sorted(split for split in chosen if split is not None)
            if not available:
                raise UserError(
                    f"data.splits={listed(self.config.splits)}: {self.config.path} has no arrays "
                    "that are called as splits, such as x_train; leave it out"
                )
            wanted = choose_splits(self.config, available)
            chosen = {split: names for split, names in chosen.items() if split in wanted}
        parts = []
        for split, (name, labels) in chosen.items():
            images = self._array(name)
            shape = " x ".join(map(str, images.shape))
            shown = f"array {name} " if name else ""
            if images.ndim not in (3, 4) or images.dtype.kind not in "buif" or 0 in images.shape:
                raise self._refusal(
                    f"{shown}holds {images.dtype} of shape {shape}, not images; give n x height x "
                    "width (x channels)"
                )
            found = None if labels is None else self._array(labels)
            if found is not None and found.size != len(images):
                raise UserError(
                    f"data.label_column={labels}: {found.size:,} labels of {len(images):,} images; "
                    "give one for each, or null to ignore labels"
                )
            parts.append(_Part(name, split, images, found))
        return parts

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return np.asanyarray(self._arrays[name][...])
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise self._refusal(
                f"array {name} cannot be read ({one_line(error)}); save plain numbers by "
                "numpy.savez"
            ) from None

    def _is_channels_first(self, part: _Part) -> bool:
        shape = part.images.shape
        if len(shape) == 3:
            return False
        first, last = shape[1] in (1, 3), shape[3] in _CHANNELS
        if first == last:
            told = " x ".join(map(str, shape))
            problem = (
                "channels could be first or last: give more than 4 pixels a side"
                if first
                else "give 1 channel (grey), 3 (RGB) or 4 (with alpha)"
            )
            raise self._refusal(f"images of shape {told}: {problem}")
        return first

    @cached_property
    def _brightest(self) -> int:
        """Value of the brightest pixel that the images may have."""
        if all(part.images.dtype == np.uint8 for part in self._parts):
            return 255
        high = 0.0
        for part in self._parts:
            for start in range(0, len(part.images), _BLOCK):
                block = part.images[start : start + _BLOCK]
                sound = block[np.isfinite(block)]
                high = max(high, float(sound.max(initial=0)))
        is_whole = all(part.images.dtype.kind in "ui" for part in self._parts)
        return next((most for most in _BRIGHTEST if high <= most), 65535 if is_whole else 255)

    def _labels(self) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        known = [part.labels for part in self._parts]
        if all(labels is None for labels in known):
            return None, None
        chunks = [
            pa.nulls(len(part.images)) if part.labels is None else pa.array(part.labels.ravel())
            for part in self._parts
        ]
        table = pa.concat_tables(
            [pa.table({"label": chunk}) for chunk in chunks], promote_options="permissive"
        )
        return labels_in(table.column("label"), self._label_name)


class _Lazy:
    """An array of an .npz file, which is read when it is used."""

    def __init__(self, loaded: Any, name: str) -> None:
        self._loaded, self._name = loaded, name

    def __getitem__(self, where: Any) -> Any:
        return self._loaded[self._name][where]


def _mapped(file: BinaryIO) -> NDArray[Any]:
    """The array of an open .npy file, which stays in the file."""
    file.seek(0)
    read = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(file) == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    order: Any = "F" if is_fortran else "C"
    return np.memmap(file, dtype, "r", file.tell(), shape, order)


def _parsed(name: str) -> tuple[str, str | None]:
    """The name of an array without that of a split, and the split: x_train, test_images."""
    words = name.lower().split("_")
    for place in (0, -1):
        if len(words) > 1 and words[place] in SPLITS:
            return "_".join(words[1:] if place == 0 else words[:-1]), words[place]
    return name.lower(), None


def _picture(images: NDArray[Any], row: int, channels_first: bool, brightest: int) -> Image.Image:
    """An image as a picture of bytes; raises ValueError if its pixels are out of range."""
    pixels = np.asarray(images[row])
    if channels_first:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= brightest):
            raise ValueError(f"its pixels go from {low:g} to {high:g}, not from 0 to {brightest}")
        pixels = np.round(pixels * (255 / brightest)).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))
