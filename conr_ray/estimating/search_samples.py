"""The samples that a search is given from Python, and the copy of them that its trials read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from conr_ray.data.arrays import as_table, data_set
from conr_ray.data.sources.label_column import labels_of
from conr_ray.data.store import DataSet
from conr_ray.errors import FolderTaken, UserError
from conr_ray.estimating.samples import (
    as_array,
    finite,
    image_rows,
    is_images,
    is_path,
    source_of,
)
from conr_ray.storage.files import Folder

_FILE = "samples.parquet"
# In the file's metadata.
_BRIGHTEST, _FINGERPRINT = b"brightest", b"fingerprint"


@dataclass(frozen=True)
class Samples:
    """Samples in files, or in memory; those are kept in a file of the search's folder.

    Attributes:
        source: fields of `data`, dotted, that lead to them.
        data: those in memory, else None.
        brightest: value of the brightest pixel that such samples may have.
    """

    source: dict[str, Any]
    data: DataSet | None = None
    brightest: int = 255

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(d,) of vectors, (c, h, w) of images, None of those that are in files."""
        return None if self.data is None else self.data.row_shape

    def keep(self, folder: Folder) -> None:
        """Write those in memory into the search's folder, unless they are there.

        Raises:
            FolderTaken: the folder holds others.
            StorageError: they cannot be written.
        """
        if self.data is None:
            return
        known = _metadata(folder)
        if known is None:
            about = {_BRIGHTEST: str(self.brightest), _FINGERPRINT: self.data.fingerprint}
            folder.write_table(_FILE, as_table(self.data).replace_schema_metadata(about))
        elif known.get(_FINGERPRINT) != self.data.fingerprint.encode():
            raise FolderTaken(f"{folder.uri} holds a search on other samples")


def given(images: Any, labels: Any, folder: Folder, side: int) -> Samples:
    """The samples that a caller hands over for a search in `folder`.

    Args:
        images: an array of NumPy or torch with images or vectors, a list of PIL images, or a path.
        labels: classes (n,) of samples in memory; None without.
        folder: where the search is.
        side: of the squares that pictures of several sizes become.

    Raises:
        UserError: they are no samples, or the labels do not fit them.
    """
    if is_path(images):
        if labels is not None:
            raise UserError("labels: folders and files have their own: leave them out")
        return Samples(source_of(str(images), "images"))
    rows: npt.NDArray[Any]
    rows, brightest = (
        image_rows(images, None, side) if is_images(images) else (_vectors(images), 255)
    )
    known, names = (None, None) if labels is None else labels_of(labels, "labels")
    if known is not None and len(known) != len(rows):
        raise UserError(f"labels: {len(known)} for {len(rows)} samples: give one each")
    source = {
        "data.source": "vectors" if rows.ndim == 2 else "parquet",
        "data.path": f"{folder.uri}/{_FILE}",
        "data.label_column": None if known is None else "label",
    }
    return Samples(source, data_set(rows, known, names), brightest)


def kept_path(folder: Folder) -> dict[str, str]:
    """The field that leads to the samples kept in a search's folder; empty without any."""
    return {"data.path": f"{folder.uri}/{_FILE}"} if folder.has(_FILE) else {}


def kept_brightest(folder: Folder) -> int | None:
    """Value of the brightest pixel that kept samples may have; None if none are kept."""
    known = _metadata(folder)
    return None if known is None or _BRIGHTEST not in known else int(known[_BRIGHTEST])


def _metadata(folder: Folder) -> dict[bytes, bytes] | None:
    table = folder.read_table(_FILE)
    return None if table is None else table.schema.metadata or {}


def _vectors(samples: Any) -> npt.NDArray[np.float32]:
    try:
        found = finite(as_array(samples), "images")
    except UserError:
        raise
    except (TypeError, ValueError):
        found = np.empty(0, np.float32)
    if found.ndim != 2:
        raise UserError(
            f"images of type {type(samples).__name__}: give arrays of images or of vectors (n, d), "
            "PIL images, or the path of a folder or Parquet file"
        )
    return found
