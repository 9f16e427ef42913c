"""What a curation is made of, so that it can be opened again.

curation.json    written beside curation.parquet (`findings`)

format       1
run          of a run: its folder
vectors      of a table: the Parquet file, with its column and num_rows
column       of vectors
num_rows     of the table
what         of the pictures of a table's samples, if there are any: folder or parquet
images       where they are: a folder, or FILE#COLUMN
"""

from __future__ import annotations

from typing import Any

from conr_ray.errors import UserError
from conr_ray.storage.files import Folder

TABLE, ABOUT = "curation.parquet", "curation.json"
_FORMAT = 1

DUPLICATE, OUTLIER, MEMBER, BLANK, BROKEN = (
    "duplicate",
    "outlier",
    "wrong member",
    "blank",
    "broken",
)
TITLES = {
    DUPLICATE: "Duplicates",
    OUTLIER: "Outliers",
    MEMBER: "Wrong-looking members",
    BLANK: "Blank pictures",
    BROKEN: "Broken samples",
}
KINDS = tuple(TITLES)


def about(**facts: Any) -> dict[str, Any]:
    """The content of curation.json."""
    return {"format": _FORMAT, **facts}


def read_about(folder: Folder) -> dict[str, Any] | None:
    """The content of a folder's curation.json; None without one.

    Raises:
        UserError: it is of another version, or damaged.
    """
    told = folder.read_json(ABOUT)
    if told is not None and (
        told.get("format") != _FORMAT or not (told.get("run") or told.get("vectors"))
    ):
        raise UserError(
            f"{folder.uri}/{ABOUT}: format={told.get('format')}: this version of conr_ray reads "
            f"{_FORMAT}: look anew with python -m conr_ray.curate"
        )
    return told
