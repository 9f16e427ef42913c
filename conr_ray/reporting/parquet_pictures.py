"""Small pictures of images in Parquet files, by file and row."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from conr_ray.config import DataConfig
from conr_ray.data.pictures import small_file
from conr_ray.data.sources.parquet import ParquetSource
from conr_ray.reporting.predictions_data import Predicted

# A picture may cost a whole row group: as many are shown as are found in this time.
_MOST_S = 30.0


def parquet_pictures(place: str, images: Iterable[Predicted]) -> dict[Predicted, bytes]:
    """The pictures of those images that can be reached.

    Args:
        place: path or URI of a Parquet file, or of the folder of such files, then # and the column.
        images: with `row`, and with `file` if it is a folder.
    """
    text, _, column = place.rpartition("#")
    by_file: dict[str | None, dict[int, Predicted]] = {}
    for image in images:
        if image.row is not None:
            by_file.setdefault(image.file, {})[image.row] = image
    found: dict[Predicted, bytes] = {}
    deadline = time.monotonic() + _MOST_S
    for file, wanted in by_file.items():
        path = text if file is None else f"{text.rstrip('/')}/{file}"
        source = ParquetSource(DataConfig(source="parquet", path=path, image_column=column))
        try:
            for row, picture in _pictures(source, sorted(wanted)):
                if picture is not None:
                    found[wanted[row]] = picture
                if time.monotonic() > deadline:
                    return found
        # Arrow raises errors of many kinds.
        except Exception:
            continue
    return found


def _pictures(source: ParquetSource, rows: list[int]) -> Iterator[tuple[int, bytes | None]]:
    """The pictures of ascending rows; None for one that cannot be decoded."""
    source.check_column()
    end = 0
    for group, size in enumerate(source.group_sizes()):
        start, end = end, end + size
        inside = [row for row in rows if start <= row < end]
        for part in source.parts(group) if inside else ():
            for row in [row for row in inside if start <= row < start + len(part)]:
                yield row, _picture(source, part.slice(row - start, 1))
            start += len(part)
            if start > inside[-1]:
                break


def _picture(source: ParquetSource, part: object) -> bytes | None:
    [opened] = source.images_in(part)
    # So do decoders.
    try:
        return small_file(opened())
    except Exception:
        return None
