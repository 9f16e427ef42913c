"""The page of what is to be cleaned in a set of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conr_ray.curation.about import KINDS, TITLES
from conr_ray.curation.duplicates import Group
from conr_ray.curation.findings import Findings
from conr_ray.curation.pictures import Pictures
from conr_ray.reporting.blocks import (
    Block,
    Fact,
    Facts,
    Note,
    Page,
    Picture,
    PictureGroup,
    PictureRow,
    Section,
    Table,
)
from conr_ray.reporting.blocks import Pictures as PictureBlock
from conr_ray.reporting.names import counted
from conr_ray.reporting.sample_names import file_at, local_folder, shown_path

# Groups and samples that are shown, samples of a group, and rows of a table.
_MOST_GROUPS, _MOST_SAMPLES, _MOST_IN_GROUP, _MOST_ROWS = 24, 48, 8, 200
_INTROS = {
    "duplicate": "Copies of one another but for crop, size, encoding or brightness. The first of a "
    "group has the most to show; the others can go.",
    "outlier": "Samples, and small groups of samples, that are far from most others.",
    "wrong member": "Their distance puts them into their cluster, their context into another.",
    "blank": "Of one colour, but for noise.",
    "broken": "Their picture or vector cannot be read.",
}


class _Shown:
    """Samples on the page."""

    def __init__(self, found: Findings, pictures: Pictures | None) -> None:
        self._found, self._pictures = found, pictures
        self._folder = None
        if pictures is not None and pictures.what == "folder":
            self._folder = local_folder(pictures.place)

    def name(self, row: int) -> str:
        """What a sample is called."""
        keys = {k: self._found.keys.column(k)[row].as_py() for k in self._found.keys.column_names}
        if keys.get("path") is not None:
            return shown_path(keys["path"])
        if keys.get("row") is not None:
            return f"row {keys['row']}" + (
                f" of {shown_path(keys['file'])}" if keys.get("file") else ""
            )
        return f"sample {keys.get('sample_id', row)}"

    def pictures(self, rows: Iterable[int], alts: dict[int, str]) -> dict[int, Picture]:
        """Pictures of those samples that have one."""
        if self._pictures is None:
            return {}
        found = self._pictures.shown(list(dict.fromkeys(rows)))
        return {
            row: Picture(data, f"{self.name(row)}, {alts[row]}", "", self._file(row))
            for row, data in found.items()
        }

    def _file(self, row: int) -> str | None:
        assert self._pictures is not None
        return file_at(self._folder, self._pictures.path(row)) if self._folder else None


def curation_page(found: Findings, pictures: Pictures | None, title: str) -> Page:
    """The page of findings; `title` is the run or the table that they are of."""
    shown = _Shown(found, pictures)
    counts = found.counts()
    name = title.rstrip("/").rpartition("/")[2]
    spare = sum(counts[kind] for kind in ("duplicate", "blank", "broken"))
    facts = [
        Fact("samples", f"{found.num_rows:,}"),
        *(Fact(TITLES[kind].lower(), f"{counts[kind]:,}") for kind in KINDS),
    ]
    sections = [
        _section(found, "duplicate", _duplicates(found, shown)),
        _section(found, "outlier", _outliers(found, shown)),
    ]
    if found.members is not None:
        sections.append(_section(found, "wrong member", _members(found, shown)))
    if pictures is not None:
        sections.append(_section(found, "blank", _blank(found, shown)))
    if found.broken:
        sections.append(
            Section("broken", TITLES["broken"], [_broken(found, shown)], _INTROS["broken"])
        )
    if found.notes:
        sections.append(Section("notes", "Not looked at", [Note(line) for line in found.notes]))
    subtitle = (
        f"{spare:,} of {counted(found.num_rows, 'sample')} can go; others are for you to judge"
    )
    return Page(f"{name}: what to clean", subtitle, Facts(facts), sections)


def _section(found: Findings, kind: str, blocks: list[Block]) -> Section:
    limit = found.thresholds.get(kind)
    intro = _INTROS[kind] + (f" Threshold: {limit}." if limit else "")
    return Section(kind.replace(" ", "-"), TITLES[kind], blocks, intro)


def _duplicates(found: Findings, shown: _Shown) -> list[Block]:
    groups = found.groups[:_MOST_GROUPS]
    alts: dict[int, str] = {}
    for number, group in enumerate(groups):
        alts[group.keep] = f"to keep, of group {number}"
        alts |= {row: f"copy in group {number}" for row in group.others}
    rows = [row for group in groups for row in (group.keep, *group.others[:_MOST_IN_GROUP])]
    files = shown.pictures(rows, alts)
    blocks: list[Block] = []
    if files:
        blocks.append(
            PictureBlock(
                "Groups",
                f"{len(groups)} of {counted(len(found.groups), 'group')}, the largest first.",
                [_group(number, group, files) for number, group in enumerate(groups)],
            )
        )
    table = [
        (
            number,
            shown.name(group.keep),
            len(group.others),
            ", ".join(shown.name(row) for row in group.others[:3])
            + (" …" if len(group.others) > 3 else ""),
            min(group.scores.values()),
            min(group.precisions.values()),
        )
        for number, group in enumerate(found.groups[:_MOST_ROWS])
    ]
    columns = ("group", "keep", "copies", "which", "least score", "precision")
    return [*blocks, _table("groups", len(found.groups), columns, table)]


def _group(number: int, group: Group, files: dict[int, Picture]) -> PictureGroup:
    others = [files[row] for row in group.others[:_MOST_IN_GROUP] if row in files]
    title = f"group {number}: {counted(len(group.others) + 1, 'sample')}"
    return PictureGroup(title, [PictureRow("copies", others)], files.get(group.keep))


def _outliers(found: Findings, shown: _Shown) -> list[Block]:
    far = found.outliers
    rows = far.rows_m.tolist()
    table = [
        (shown.name(row), score, precision)
        for row, score, precision in zip(
            rows[:_MOST_ROWS], far.scores_m.tolist(), far.precisions_m.tolist(), strict=False
        )
    ]
    named = _table("outliers", len(rows), ("sample", "score", "precision"), table)
    return [*_strip(shown, "Outliers", rows, "outlier"), named]


def _members(found: Findings, shown: _Shown) -> list[Block]:
    wrong = found.members
    assert wrong is not None
    rows = wrong.rows_m.tolist()
    table = [
        (shown.name(row), other, score, precision)
        for row, other, score, precision in zip(
            rows[:_MOST_ROWS],
            wrong.others_m.tolist(),
            wrong.scores_m.tolist(),
            wrong.precisions_m.tolist(),
            strict=False,
        )
    ]
    columns = ("sample", "rather in cluster", "share of votes", "precision")
    named = _table("members", len(rows), columns, table)
    return [*_strip(shown, "Members", rows, "wrong-looking member"), named]


def _blank(found: Findings, shown: _Shown) -> list[Block]:
    rows = list(found.blank)
    table = [(shown.name(row), found.blank[row]) for row in rows[:_MOST_ROWS]]
    named = _table("blank pictures", len(rows), ("sample", "contrast"), table)
    return [*_strip(shown, "Blank", rows, "blank"), named]


def _broken(found: Findings, shown: _Shown) -> Block:
    table = [(shown.name(row), why) for row, why in list(found.broken.items())[:_MOST_ROWS]]
    return _table("broken samples", len(found.broken), ("sample", "reason"), table)


def _strip(shown: _Shown, title: str, rows: list[int], what: str) -> list[Block]:
    """Pictures side by side."""
    some = rows[:_MOST_SAMPLES]
    files = shown.pictures(some, dict.fromkeys(some, what))
    if not files:
        return []
    pictures = [files[row] for row in some if row in files]
    caption = f"{len(pictures)} of {len(rows):,}."
    return [PictureBlock(title, caption, [PictureGroup("", [PictureRow("", pictures)])])]


def _table(
    what: str, total: int, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> Block:
    if not rows:
        return Note(f"No {what} found.")
    caption = f"{total:,} {what}" + (f", of which {len(rows)} here" if total > len(rows) else "")
    return Table.of(caption, columns, rows)
