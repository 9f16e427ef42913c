"""All that was found in a set of samples, as a table.

curation.parquet    a row for each finding, of one sample

path, file, row, sample_id    those that name the sample where it is from
index        its row among the vectors, int64
kind         duplicate, outlier, wrong member, blank or broken
group        of duplicates: which belong together; of a wrong member: the cluster that its context
             votes for; else null
keep         of duplicates: true for the one to keep of its group; false also for what is blank or
             broken; null where a person should look
score        duplicate: likeness of the pictures, or cosine of the vectors, with its nearest copy;
             outlier: see `outliers`; wrong member: share of the votes; blank: contrast, 0 to 127
precision    estimated share of true ones among those of the kind with at least such a score
reason       of what is broken, text
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from conr_ray.curation.about import KINDS
from conr_ray.curation.duplicates import Group
from conr_ray.curation.members import WrongMembers
from conr_ray.curation.outliers import Outliers

_SCHEMA = {
    "index": pa.int64(),
    "kind": pa.string(),
    "group": pa.int64(),
    "keep": pa.bool_(),
    "score": pa.float64(),
    "precision": pa.float64(),
    "reason": pa.string(),
}


@dataclass(frozen=True)
class Findings:
    """What is to be cleaned in `num_rows` samples.

    Attributes:
        num_rows: samples.
        keys: their columns that name them.
        groups: of duplicates, the largest first.
        outliers: the farthest first.
        members: wrong-looking ones; None if clusters are not known.
        blank: contrast by row.
        broken: reason by row.
        thresholds: facts for the page: the threshold of a kind, and what it finds.
        notes: what was not looked for, and why; lines.
    """

    num_rows: int
    keys: pa.Table
    groups: list[Group]
    outliers: Outliers
    members: WrongMembers | None
    blank: dict[int, float]
    broken: dict[int, str]
    thresholds: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Samples of each kind; of duplicates those that can go."""
        members = 0 if self.members is None else len(self.members.rows_m)
        spare = sum(len(group.others) for group in self.groups)
        numbers = (spare, len(self.outliers.rows_m), members, len(self.blank), len(self.broken))
        return dict(zip(KINDS, numbers, strict=True))

    def table(self) -> pa.Table:
        """The rows of curation.parquet."""
        rows: list[tuple[Any, ...]] = []
        for number, group in enumerate(self.groups):
            for row in (group.keep, *group.others):
                score, precision = group.scores[row], group.precisions[row]
                kept = row == group.keep
                rows.append((row, "duplicate", number, kept, score, precision, None))
        out = self.outliers
        found = zip(out.rows_m, out.scores_m, out.precisions_m, strict=True)
        rows += [(int(r), "outlier", None, None, float(s), float(p), None) for r, s, p in found]
        if self.members is not None:
            wrong = self.members
            of_wrong = (wrong.rows_m, wrong.others_m, wrong.scores_m, wrong.precisions_m)
            rows += [
                (int(r), "wrong member", int(o), None, float(s), float(p), None)
                for r, o, s, p in zip(*of_wrong, strict=True)
            ]
        rows += [(row, "blank", None, False, s, 1.0, None) for row, s in self.blank.items()]
        rows += [(row, "broken", None, False, None, 1.0, why) for row, why in self.broken.items()]
        columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
        table = pa.table(
            {
                name: pa.array(column, kind)
                for (name, kind), column in zip(_SCHEMA.items(), columns, strict=True)
            }
        )
        named = self.keys.take(table.column("index"))
        for place, name in enumerate(named.column_names):
            table = table.add_column(place, name, named.column(name))
        return table
