"""A person's edits in the folder of what is edited, local or in a bucket.

edits.parquet   a row for each step (`conr_ray.edits.log.Edit`); its schema tells of which clusters
names.yaml      the name of each cluster that has one; people may edit it too

Both are written anew at each step, each as a whole.

Shapes: n samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from conr_ray.edits.log import Edit, EditLog, Ids, check_names
from conr_ray.errors import UserError, one_line
from conr_ray.storage.files import Folder

EDITS, NAMES = "edits.parquet", "names.yaml"
_OF, _FORMAT, _VERSION = b"conr_ray.edits_of", b"conr_ray.format", b"1"
_HEAD = (
    "# Names of clusters, by number: no name twice. python -m conr_ray.browse writes this file.\n"
)
_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("clusters", pa.list_(pa.int64())),
        ("into", pa.int64()),
        ("name", pa.string()),
        ("sample_ids", pa.list_(pa.int64())),
        ("center_stays", pa.list_(pa.float32())),
        ("center_goes", pa.list_(pa.float32())),
        ("at", pa.string()),
    ]
)


def fingerprint_of(sample_ids_n: Ids, clusters_n: Ids) -> str:
    """What tells a clustering from others: which samples are in which cluster."""
    digest = hashlib.sha256(b"clusters of samples")
    for column_n in (sample_ids_n, clusters_n):
        digest.update(np.ascontiguousarray(column_n, np.int64).data)
    return digest.hexdigest()[:32]


def read_assignments(folder: Folder) -> pa.Table | None:
    """The clusters of a run's or a clustering's samples; None before there are any.

    Raises:
        UserError: the table is damaged.
    """
    return folder.read_table("assignments.parquet", ("sample_id", "cluster", "boundary_ratio"))


def assigned_fingerprint(assignments: pa.Table) -> str:
    """`fingerprint_of` a table of assignments."""
    columns = [assignments.column(name).to_numpy() for name in ("sample_id", "cluster")]
    return fingerprint_of(*columns)


def read_edits(folder: Folder, fingerprint: str) -> EditLog:
    """The steps in a folder; those of names.yaml that edits.parquet lacks are at the end.

    Raises:
        UserError: they are of other clusters than `fingerprint` tells, or damaged, or a name is
            used twice.
    """
    table = folder.read_table(EDITS)
    log = EditLog() if table is None else _log(folder, table, fingerprint)
    names = _read_names(folder)
    if names is None:
        return log
    before = log.names()
    taken_away = [Edit("rename", (cluster,)) for cluster in before if cluster not in names]
    given = [
        Edit("rename", (cluster,), name=name)
        for cluster, name in names.items()
        if before.get(cluster) != name
    ]
    return EditLog((*log.steps, *taken_away, *given))


def write_edits(folder: Folder, log: EditLog, fingerprint: str) -> None:
    """Write both files.

    Raises:
        StorageError: they cannot be written.
    """
    rows = [_row(step) for step in log.steps]
    table = pa.Table.from_pylist(rows, _SCHEMA)
    folder.write_table(EDITS, table.replace_schema_metadata({_OF: fingerprint, _FORMAT: _VERSION}))
    write_names(folder, log.names())


def write_names(folder: Folder, names: Mapping[int, str]) -> None:
    """Write names.yaml.

    Raises:
        StorageError: it cannot be written.
    """
    names = dict(names)
    text = yaml.safe_dump(names, allow_unicode=True, sort_keys=True) if names else "{}\n"
    folder.write_text(NAMES, _HEAD + text)


def digest_of_edits(log: EditLog) -> str:
    """What tells edits from others by what they do; empty if they do nothing."""
    if not log.active:
        return ""
    rows = [{**_row(step), "at": ""} for step in log.active]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _row(step: Edit) -> dict[str, Any]:
    stays, goes = (None, None) if step.centers_2d is None else step.centers_2d.tolist()
    return {
        "kind": step.kind,
        "clusters": list(step.clusters),
        "into": step.into,
        "name": step.name,
        "sample_ids": step.sample_ids_m.tolist(),
        "center_stays": stays,
        "center_goes": goes,
        "at": step.at,
    }


def _log(folder: Folder, table: pa.Table, fingerprint: str) -> EditLog:
    metadata = table.schema.metadata or {}
    if metadata.get(_FORMAT) != _VERSION or not set(_SCHEMA.names) <= set(table.column_names):
        raise UserError(
            f"{folder.uri}/{EDITS}: no edits that this version of conr_ray reads: use the version "
            "that wrote it, or move it away"
        )
    if metadata.get(_OF, b"").decode() != fingerprint:
        raise UserError(
            f"{folder.uri}/{EDITS}: edits of another run, or of other clusters than this one has "
            f"now: move it and {NAMES} away, or leave them out with --no-edits"
        )
    try:
        return EditLog(tuple(_step(row) for row in table.to_pylist()))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder.uri}/{EDITS} is damaged ({one_line(error)}): move it away"
        ) from None


def _step(row: dict[str, Any]) -> Edit:
    centers = None
    if row["center_stays"] is not None:
        centers = np.array([row["center_stays"], row["center_goes"]], np.float32)
    return Edit(
        row["kind"],
        tuple(row["clusters"]),
        row["into"],
        row["name"],
        np.array(row["sample_ids"], np.int64),
        centers,
        row["at"],
    )


def _read_names(folder: Folder) -> dict[int, str] | None:
    """The names in names.yaml; None without that file."""
    text = folder.read_text(NAMES)
    if text is None:
        return None
    place = f"{folder.uri}/{NAMES}"
    try:
        found = yaml.safe_load(text) or {}
        names = {int(cluster): name for cluster, name in dict(found).items()}
        if len(names) != len(found):
            raise ValueError("a cluster is named twice")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{place}: not a list of clusters and names ({one_line(error)}): write lines such as "
            "3: shoes"
        ) from None
    try:
        return check_names({cluster: str(name) for cluster, name in names.items()})
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
