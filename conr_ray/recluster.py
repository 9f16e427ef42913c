"""`python -m conr_ray.recluster`: the samples of a run in another number of clusters."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conr_ray.command_line import (
    absolute,
    folder_option,
    make_console,
    run_command,
    where_result_is,
)
from conr_ray.command_parser import Parser
from conr_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from conr_ray.engine.recluster import Reclustering

# The one to judge by without labels: see docs/label_free.md.
_SCORE = "neighbor_consistency"
_AUTO, _DOCS = "auto", "docs/num_clusters.md"
_RANGE = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9}))?")


@folder_option("--out")
def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, cluster in each number, print the scores and where the clusters are."""
    args = _parser().parse_args(arguments)
    if args.extend is not None:
        _extend(args)
        return
    if args.edits:
        if args.ids_of is not None:
            raise UserError("--edits keeps the numbers of what was edited: leave out --ids-of")
        _correct(args)
        return
    numbers = _numbers(args.clusters)
    from conr_ray.engine.clusters_folder import PLACE, ClustersFolder
    from conr_ray.storage.files import Folder

    reclustering, uri = _reclustering(args, numbers)
    out = Folder((args.out or f"{uri}/{PLACE}").rstrip("/"))
    console = make_console()
    earlier = None
    if args.ids_of is not None:
        from conr_ray.engine.earlier_clusters import EarlierClusters

        with folder_option("--ids-of"):
            earlier = EarlierClusters.read(Folder(args.ids_of.rstrip("/") or "/"), "--ids-of")
        earlier.rows_in(reclustering.data, "--ids-of")
    rows, chosen, why = _clustered(reclustering, numbers, console)
    text = "\n".join(
        ",".join(map(str, line)) for line in [list(rows[0]), *(r.values() for r in rows)]
    )
    out.write_text("recluster.csv", text + "\n")
    folder = ClustersFolder(f"{out.uri}/{chosen[0]}")
    lines = []
    if earlier is None:
        reclustering.write(chosen[1], folder)
    else:
        from conr_ray.edits.folder import EDITS, NAMES
        from conr_ray.engine.cluster_changes import told_of
        from conr_ray.engine.earlier_clusters import write_changes

        if earlier.uri != folder.uri and (folder.has(EDITS) or folder.has(NAMES)):
            raise UserError(
                f"{folder.uri} has names or edits of its own: choose another --out, or move it away"
            )
        found, changes = reclustering.numbered(chosen[1], earlier)
        reclustering.write(found, folder)
        same = earlier.uri.startswith(reclustering.run.directory.uri)
        write_changes(earlier, changes, found, reclustering.data, folder, same_networks=same)
        lines += [f"numbered as {earlier.uri}:", *told_of(changes.table)]
    console.print(_table(rows, chosen[0]))
    if why is not None:
        lines.append(f"by the tree of merged clusters: {why}; when not to trust it: {_DOCS}")
    if len(rows) > 1:
        lines.append(
            f"highest {_SCORE.replace('_', ' ')}: {chosen[0]} clusters. It is a hint, not the "
            "truth: for another number, --clusters NUMBER"
        )
    beside = ", for spreadsheets clusters.csv beside it" if folder.has("clusters.csv") else ""
    lines += [
        f"scores: {out.uri}/recluster.csv",
        f"assignments: {folder.uri}/assignments.parquet{beside}",
    ]
    console.print("\n".join(lines), soft_wrap=True)


def _correct(args: argparse.Namespace) -> None:
    """Spread what a person has changed to samples with similar contexts; print where it is."""
    import torch

    from conr_ray.edits.folder import (
        EDITS,
        assigned_fingerprint,
        read_assignments,
        read_edits,
        write_names,
    )
    from conr_ray.engine.clusters_folder import PLACE, ClustersFolder

    reclustering, uri = _reclustering(args, range(2, 3))
    directory = reclustering.run.directory
    assignments = read_assignments(directory)
    if assignments is None:
        raise UserError(f"--run {uri}: the run has not ended: resume it")
    log = read_edits(directory, assigned_fingerprint(assignments))
    if not log.active:
        raise UserError(
            f"--edits: nothing of {uri} is changed: do so with python -m conr_ray.browse"
        )
    embeddings_nd = torch.cat(list(reclustering.embeddings()))
    found, names = reclustering.corrected(embeddings_nd, log, assignments)
    number = len(found.centers_cd)
    folder = ClustersFolder(f"{(args.out or f'{uri}/{PLACE}').rstrip('/')}/{number}")
    if folder.has(EDITS):
        raise UserError(f"{folder.uri} has edits of its own: choose another --out, or move it away")
    reclustering.write(found, folder)
    write_names(folder, names)
    row = {"num_clusters": number, **reclustering.scores(found)}
    console = make_console()
    console.print(_table([row], number))
    console.print(f"assignments: {folder.uri}/assignments.parquet", soft_wrap=True)


def _extend(args: argparse.Namespace) -> None:
    """Write a run that holds more samples in the clusters of this one; print what has changed."""
    import torch

    from conr_ray.engine.cluster_changes import read_changes
    from conr_ray.engine.extend import extend, extended_config
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.trained_run import TrainedRun
    from conr_ray.frozen import open_samples
    from conr_ray.metric_names import headline

    for option in ("data", "ids_of"):
        if getattr(args, option) is not None:
            raise UserError(f"--extend says what becomes of what: leave out {_option(option)}")
    if args.out is None:
        raise UserError("--extend makes a run: give its folder with --out")
    origin, out = (RunDirectory(one.rstrip("/") or "/") for one in (args.run, args.out))
    config = extended_config(TrainedRun.load(origin), absolute(args.extend))
    if out.has("assignments.parquet"):
        raise UserError(f"--out={out.uri}: it holds clusters: choose another folder")
    try:
        data = open_samples(config, origin)
    except UserError as error:
        raise UserError(f"--extend: {error}") from None
    with out.held():
        out.claim(config, resume=True)
        extend(origin, config, data, out, torch.device(_device()))
    console = make_console()
    lines = [headline(out.metric_rows()[-1]), *read_changes(out), *where_result_is(out)]
    console.print("\n".join(lines), soft_wrap=True)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _numbers(text: str) -> range:
    """The numbers of clusters that --clusters names; an empty range for `auto`."""
    if text.strip() == _AUTO:
        return range(0)
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"--clusters {text}: give a number, such as 12, or a range, such as 5..30, or {_AUTO}"
        )
    first = int(found[1])
    last = int(found[2] or first)
    if last < first:
        raise UserError(
            f"--clusters {text}: the range is the wrong way round: give {last}..{first}"
        )
    if found[2] is not None and last == first:
        raise UserError(f"--clusters {text}: the range holds one number: give {first}")
    if first < 2:
        raise UserError(f"--clusters {text}: fewer than 2 clusters tell nothing: give 2 or more")
    return range(first, last + 1)


def _reclustering(args: argparse.Namespace, numbers: range) -> tuple[Reclustering, str]:
    """The run with its samples, and its folder."""
    import dataclasses

    from conr_ray.config import override
    from conr_ray.engine.recluster import Reclustering
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.trained_run import TrainedRun
    from conr_ray.frozen import open_samples

    directory = RunDirectory(args.run.rstrip("/") or "/")
    run = TrainedRun.load(directory, _device())
    if args.data is not None:
        run = dataclasses.replace(run, config=override(run.config, {"data.path": args.data}))
    data = open_samples(run.config, directory)
    make_console().print(data.line, soft_wrap=True)
    if numbers and numbers[-1] > data.num_rows:
        raise UserError(
            f"--clusters {args.clusters}: the run has {data.num_rows} {data.what}: give no more"
        )
    return Reclustering.of(run, data, directory), directory.uri


def _clustered(
    reclustering: Reclustering, numbers: range, console: Console
) -> tuple[list[dict[str, Any]], tuple[int, Any], str | None]:
    """A row of scores for each number; the number taken, its clusters, and what the tree says.

    Without `numbers`, the tree's own number is the only one.
    """
    import torch
    from rich.progress import track

    parts = track(
        reclustering.embeddings(),
        "embedding",
        reclustering.num_parts,
        console=console,
        transient=True,
    )
    embeddings_nd = torch.cat(list(parts))
    why = None
    if len(numbers) != 1:
        choice = reclustering.number(embeddings_nd, numbers)
        why, numbers = choice.why, numbers or range(choice.num_clusters, choice.num_clusters + 1)
    rows: list[dict[str, Any]] = []
    chosen: tuple[int, Any] | None = None
    best = 0.0
    for number in track(numbers, "clustering", console=console, transient=True):
        found = reclustering.clustered(embeddings_nd, number)
        rows.append({"num_clusters": number, **reclustering.scores(found)})
        if chosen is None or rows[-1][_SCORE] > best:
            chosen, best = (number, found), rows[-1][_SCORE]
    assert chosen is not None
    return rows, chosen, why


def _table(rows: list[dict[str, Any]], chosen: int) -> Any:
    """The scores for a terminal; a star marks the chosen number."""
    from rich.table import Table

    from conr_ray.metric_names import AGREEMENT_WITH_LABELS, LABEL_FREE_SCORES

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    names = [n for n in (*LABEL_FREE_SCORES, *AGREEMENT_WITH_LABELS) if n in rows[0]]
    for name in ("clusters", *names, "smallest_share"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        number = f"{'* ' if row['num_clusters'] == chosen else ''}{row['num_clusters']}"
        table.add_row(number, *(f"{row[name]:.3f}" for name in (*names, "smallest_share")))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.recluster",
        description="Cluster the samples of a finished run in other numbers, without training.",
    )
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="folder of the run, or s3://bucket/folder"
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--clusters",
        metavar="N|N..M|auto",
        help="number; a range: that with the highest neighbor consistency is written; or auto: "
        "the number that a tree of merged clusters shows",
    )
    wanted.add_argument(
        "--edits",
        action="store_true",
        help="cluster anew with what has been changed with conr_ray.browse",
    )
    wanted.add_argument(
        "--extend",
        metavar="PATH",
        help="the run's samples and more: its clusters go on with all of them, and keep their "
        "numbers; --out is the folder of the new run",
    )
    parser.add_argument(
        "--ids-of",
        metavar="DIR",
        help="folder of an earlier run, or of one of its reclusterings: clusters take the numbers "
        "and names of those that they share most samples with",
    )
    parser.add_argument(
        "--data", metavar="PATH", help="where the run's samples are now (default: its data.path)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write to (default: recluster in that of the run)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
