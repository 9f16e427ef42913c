"""What the sub-folders of a folder of pictures stand for: parts of a data set, classes, or neither.

A folder that holds all others, as of an archive that was unpacked, stands for nothing. If all
sub-folders are called as parts are (train, val, test ...), they are `data.splits`, and classes are
the folders in them. The folders after these are classes, however deep the pictures are in them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import Int64Array, choose_splits, listed
from conr_ray.data.sources.walk import as_text
from conr_ray.errors import UserError

_SPLIT_NAMES = "train training val valid validation dev test testing eval unlabeled unlabelled"
SPLITS = frozenset(_SPLIT_NAMES.split())
# Years, days and the like, and what cameras call their folders (DCF: 100CANON).
_DATE = re.compile(
    r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?(0[1-9]|[12]\d|3[01]))?)?"
    r"|(0[1-9]|[12]\d|3[01])[-_. ](0[1-9]|1[0-2])[-_. ](19|20)\d\d|[1-9]\d\d(?=\w*[A-Z_])\w{5}|DCIM"
)

_REMEDY = "data.labels=folders makes them classes"
# Inside a year.
_MONTH = re.compile(r"\d\d(\D.*)?$")


@dataclass(frozen=True)
class Layout:
    """What the folders of some pictures stand for.

    Attributes:
        read: folders that are read, by `data.splits`.
        classes: of each folder, None if it is in no class; None without labels.
        why: what speaks against labels where there are sub-folders; empty if nothing does.
    """

    read: Collection[str]
    classes: Mapping[str, str | None] | None
    why: str = ""

    def labels_of(self, folders: Sequence[str]) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        """Labels of pictures by their folders, -1 for those in no class, and the classes' names."""
        if self.classes is None:
            return None, None
        found = sorted({name for name in self.classes.values() if name is not None})
        number: dict[str | None, int] = {name: label for label, name in enumerate(found)}
        label = {folder: number.get(name, -1) for folder, name in self.classes.items()}
        return np.array([label[folder] for folder in folders], np.int64), tuple(map(as_text, found))


def folder_of(name: str) -> str:
    """The folder of a file, as a path; empty for the root."""
    return name.rpartition("/")[0]


def layout_of(counts: Mapping[str, int], config: DataConfig) -> Layout:
    """The layout of folders by `config`; `counts` tells how many pictures are right in each.

    Raises:
        UserError: there are no such splits, or labels are asked for, and no sub-folders are there.
    """
    parts = {folder: folder.split("/") if folder else [] for folder in counts}
    depth = 0 if config.classes is not None else _common(list(parts.values()))
    at = _depth_of_splits(list(parts.values()), depth)
    above = next(iter(parts.values()))[depth - 1] if depth else ""
    part_of: dict[str, str | None] = dict.fromkeys(parts)
    if at is not None:
        depth = at + 1
        part_of = {folder: _at(found, at) for folder, found in parts.items()}
    read = list(parts)
    if config.splits is not None:
        if at is None:
            raise UserError(
                f"data.splits={listed(config.splits)}: {config.path} has no sub-folders that are "
                "called as parts of a data set, such as train and test; leave it out"
            )
        chosen = choose_splits(config, sorted({part for part in part_of.values() if part}))
        read = [folder for folder in parts if part_of[folder] in chosen]
    if config.label_column is None or config.labels == "none":
        return Layout(read, None)
    classes = {folder: _at(parts[folder], depth) for folder in read}
    found = sorted({name for name in classes.values() if name is not None})
    why = ""
    if config.labels == "folders" and len(found) < 2:
        raise UserError(
            f"data.labels=folders: {config.path} has no two sub-folders that could be classes: "
            "leave data.labels out"
        )
    if config.labels == "auto" and len(found) > 1:
        why = _why_dates(found, above) or _why_most(found, classes, part_of, counts)
    return Layout(read, None if why or len(found) < 2 else classes, why)


def _at(folders: Sequence[str], depth: int) -> str | None:
    return folders[depth] if len(folders) > depth else None


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many folders all files share."""
    depth, first = 0, parts[0]
    while depth < len(first) and all(_at(found, depth) == first[depth] for found in parts):
        depth += 1
    return depth


def _depth_of_splits(parts: Sequence[Sequence[str]], depth: int) -> int | None:
    """Where folders are called as parts of a data set: at `depth`, or the last that all share."""
    for at in (depth, depth - 1):
        tops = {folders[at] for folders in parts if len(folders) > at >= 0}
        if tops and all(top.lower() in SPLITS for top in tops):
            return at
    return None


def _why_dates(found: Sequence[str], above: str) -> str:
    """Why sub-folders in a folder are not taken as classes: they are called as dates are."""
    in_year = _DATE.fullmatch(above) and all(_MONTH.match(name) for name in found)
    if not in_year and not all(_DATE.fullmatch(name) for name in found):
        return ""
    return f"sub-folders {_named(found)} are dates: {_REMEDY}"


def _why_most(
    found: Sequence[str],
    classes: Mapping[str, str | None],
    part_of: Mapping[str, str | None],
    counts: Mapping[str, int],
) -> str:
    """Why sub-folders are not taken as classes: most pictures are in none."""
    # Parts in which no picture has a class, as an unlabelled one, say nothing of the others.
    labelled = {part_of[folder] for folder, name in classes.items() if name is not None}
    inside = outside = 0
    for folder, name in classes.items():
        if name is not None:
            inside += counts[folder]
        elif part_of[folder] in labelled | {None}:
            outside += counts[folder]
    if outside <= inside:
        return ""
    return f"most pictures are not in sub-folders such as {_named(found)}: {_REMEDY}"


def _named(found: Sequence[str]) -> str:
    return listed([as_text(name) for name in found], 3)
