"""A person's edits of an earlier run, which a run learns from (`clustering.edits`).

given_edits.parquet in the directory of a run, a row for each sample, in their order:

sample_id   int64
group       int64, which samples the person has put together, from 0; -1 without a word
fixed       bool, whether the word is of the sample itself
junk        bool

It is written when the run begins, and read from then on: what a person changes afterwards does not
change the run.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import torch

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.edits.folder import EDITS, assigned_fingerprint, read_assignments, read_edits
from conr_ray.edits.log import JUNK
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.method.collectives import all_reduce_sum, broadcast_first, rank
from conr_ray.method.neighbors.links import Links
from conr_ray.storage.files import Folder

TABLE = "given_edits.parquet"


def check_given_edits(
    config: RunConfig, data: DataSet, directory: RunDirectory, least: int
) -> None:
    """Raise UserError unless a run of `config` can learn from the edits that it names.

    Nothing is written.

    Args:
        config: of the run.
        data: its samples.
        directory: of the run, which may have begun.
        least: its least number of clusters.
    """
    if config.clustering.edits is not None and not directory.has(TABLE):
        _links(_made(config.clustering.edits, data), config, data, least)


def agreed_edits(
    config: RunConfig, data: DataSet, directory: RunDirectory, least: int, device: torch.device
) -> Links | None:
    """A person's word on the samples of a run, on all its workers; None without `clustering.edits`.

    The first worker reads it, and keeps it in the run's directory.

    Args:
        config: of the run.
        data: its samples.
        directory: of the run.
        least: its least number of clusters.
        device: where the tensors are.

    Raises:
        UserError: on all workers, if it cannot be read, or is of other samples.
    """
    source = config.clustering.edits
    if source is None:
        return None
    failure: UserError | None = None
    said_3n = torch.zeros(3, data.num_rows, dtype=torch.int64)
    if rank() == 0:
        try:
            kept = directory.read_table(TABLE)
            table = _made(source, data) if kept is None else kept
            links = _links(table, config, data, least)
            if kept is None:
                directory.write_table(TABLE, table)
            said_3n = torch.stack([links.groups_n, links.fixed_n.long(), links.junk_n.long()])
        except UserError as error:
            failure = error
    failed = torch.tensor(float(failure is not None), device=device)
    if all_reduce_sum(failed) > 0:
        raise failure or UserError(
            f"clustering.edits={short(source)}: the first worker could not use it: see its error"
        )
    groups_n, fixed_n, junk_n = broadcast_first(said_3n.to(device))
    return Links(groups_n, fixed_n.bool(), junk_n.bool())


def edits_digest(links: Links | None) -> str | None:
    """What tells a person's word from others, in hexadecimal; None without any."""
    if links is None:
        return None
    said = [one.numpy(force=True).astype(np.int64) for one in (links.groups_n, links.fixed_n)]
    said.append(links.junk_n.numpy(force=True).astype(np.int64))
    return hashlib.sha256(np.stack(said).tobytes()).hexdigest()


def keep_edits(links: Links | None, data: DataSet, directory: RunDirectory) -> None:
    """Write the table to the directory of a run that has none yet, such as a trunk; for rank 0."""
    if links is None or directory.has(TABLE):
        return
    columns = {"sample_id": data.sample_ids, "group": links.groups_n.numpy(force=True)}
    columns |= {"fixed": links.fixed_n.numpy(force=True), "junk": links.junk_n.numpy(force=True)}
    directory.write_table(TABLE, pa.table(columns))


def _made(source: str, data: DataSet) -> pa.Table:
    """The table of a folder with edits, or of its edits.parquet.

    Raises:
        UserError: there are none, or they are of other clusters or samples.
    """
    told = f"clustering.edits={short(source)}"
    folder = Folder(source.removesuffix(f"/{EDITS}").rstrip("/") or "/")
    if not folder.has(EDITS):
        raise UserError(
            f"{told}: there is no {EDITS}: give the folder of a run that was changed with python "
            "-m conr_ray.browse"
        )
    assignments = read_assignments(folder)
    if assignments is None:
        raise UserError(
            f"{told}: no assignments.parquet is beside them, of whose clusters they are: give the "
            "folder of a run"
        )
    log = read_edits(folder, assigned_fingerprint(assignments))
    _check_samples(told, folder, data)
    ids_n = assignments.column("sample_id").to_numpy()
    if not np.array_equal(ids_n, data.sample_ids):
        raise UserError(
            f"{told}: of {len(ids_n):,} samples, and the run has {data.num_rows:,} {data.what}, "
            "not the same: set data.* as that run has them"
        )
    clusters_n = log.clusters(ids_n, assignments.column("cluster").to_numpy())
    fixed_n = np.isin(ids_n, list(log.fixed()))
    junk_n = clusters_n == JUNK
    merged = {step.target for step in log.active if step.kind == "merge"}
    said_n = (fixed_n | np.isin(clusters_n, list(merged))) & ~junk_n
    if not said_n.any() and not junk_n.any():
        raise UserError(
            f"{told}: nothing is merged, split, moved or junk there, and names teach nothing: "
            "leave it out"
        )
    groups_n = np.full(len(ids_n), -1)
    groups_n[said_n] = np.unique(clusters_n[said_n], return_inverse=True)[1]
    columns = {"sample_id": ids_n, "group": groups_n, "fixed": fixed_n & said_n, "junk": junk_n}
    return pa.table(columns)


def _check_samples(told: str, folder: Folder, data: DataSet) -> None:
    """Raise UserError unless the run that was changed has the same samples."""
    run = RunDirectory(folder.uri)
    if not run.has("config.yaml"):
        # Reclustered clusters are in RUN/recluster/NUMBER.
        run = RunDirectory(folder.parent.parent.uri)
    epoch, steps = run.newest_checkpoint()
    summary = run.read_json(f"{run.checkpoint_name(epoch, steps)}/summary.json") or {}
    if (known := summary.get("data_fingerprint")) is None:
        raise UserError(f"{told}: of no run that has a checkpoint: give the folder of a run")
    if known != data.fingerprint:
        raise UserError(
            f"{told}: of a run on other {data.what}, or on those that another backbone has "
            f"embedded ({run.uri}): train on the same, or leave it out"
        )


def _links(table: pa.Table, config: RunConfig, data: DataSet, least: int) -> Links:
    """The word of a table, checked.

    Raises:
        UserError: it has more groups than the run has clusters, or leaves less than a batch.
    """
    columns = [
        torch.from_numpy(table.column(n).to_numpy().copy()) for n in ("group", "fixed", "junk")
    ]
    links = Links(columns[0].long(), columns[1].bool(), columns[2].bool())
    told, left = f"clustering.edits={short(config.clustering.edits or '')}", len(links.junk_n)
    left -= links.num_junk
    if links.num_groups > least:
        raise UserError(
            f"{told}: of {links.num_groups} clusters, and the run may have {least}: set "
            f"clustering.num_clusters to {links.num_groups} or more"
        )
    if left < config.optim.batch_size:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size} exceeds the {left} {data.what} that are "
            "no junk: lower it"
        )
    return links
