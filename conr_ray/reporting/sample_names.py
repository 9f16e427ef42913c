"""What the samples of a run are called on a page, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from conr_ray.config import DataConfig
from conr_ray.data.sources.walk import from_text
from conr_ray.engine.snapshot import Snapshot
from conr_ray.errors import printable

_LONGEST = 80


@dataclass(frozen=True)
class SampleNames:
    """Names of samples.

    Attributes:
        paths: inside the folder of the images, by the samples' ids; empty if they are no files.
        folder: the absolute local folder of the images; None if they cannot be reached.
    """

    paths: Mapping[int, str]
    folder: str | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, data: DataConfig) -> SampleNames:
        """Those of the samples of a snapshot."""
        folder = data.path if data.source in ("folder", "auto") else None
        if data.source == "list" and data.path is not None and "://" not in data.path:
            folder = os.path.dirname(os.path.abspath(data.path))
        return cls(snapshot.paths, local_folder(folder))

    def name(self, sample: int) -> str:
        """The file's path, or the sample's number."""
        return shown_path(self.paths[sample]) if sample in self.paths else f"sample {sample}"

    def file(self, sample: int) -> str | None:
        """The absolute path of the sample's file, if it is there."""
        return file_at(self.folder, self.paths.get(sample))


def local_folder(path: str | None) -> str | None:
    """A folder that is there on this machine, as an absolute path."""
    if path is None or "://" in path or not os.path.isdir(path):
        return None
    return os.path.abspath(path)


def file_at(folder: str | None, path: str | None) -> str | None:
    """The absolute path of a file inside a folder, if it is there; `path` is as in tables."""
    if folder is None or path is None or "\0" in (name := from_text(path)):
        return None
    whole = os.path.abspath(os.path.join(folder, name))
    # A table from elsewhere may name anything.
    inside = whole.startswith(f"{folder.rstrip('/')}/")
    return whole if inside and os.path.isfile(whole) else None


def shown_path(path: str) -> str:
    """A path in one line; of a long one the end, which tells files apart."""
    text = printable(path)
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
