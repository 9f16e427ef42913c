"""`python -m conr_ray.curate`: duplicates, outliers, wrong members and blank pictures of a set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conr_ray.command_line import absolute, folder_option, make_console, run_command
from conr_ray.command_parser import Parser
from conr_ray.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from conr_ray.curation.pictures import Pictures
    from conr_ray.curation.samples import Samples

_PAGE, _COLUMN = "curation.html", "embedding"


@folder_option("--out")
def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, look for all that is to be cleaned, print what there is and where."""
    args = _parser().parse_args(arguments)
    _check(args)
    import torch

    from conr_ray.cores import usable_cores
    from conr_ray.curation.about import ABOUT, TABLE
    from conr_ray.curation.curate import curated
    from conr_ray.reporting.curation_page import curation_page
    from conr_ray.reporting.report_file import write_page
    from conr_ray.storage.files import Folder
    from conr_ray.storage.scratch import scratch_folder

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    console = make_console()
    out = Folder(absolute(args.out or args.run or "curation").rstrip("/"))
    with scratch_folder("curate") as folder, console.status("samples") as status:
        samples, pictures, notes = _opened(args, folder)
        found = curated(samples, pictures, folder, lambda what: status.update(what))
        found.notes[:0] = notes
        out.write_table(TABLE, found.table())
        out.write_text(ABOUT, json.dumps(_about(args, found.num_rows, pictures)) + "\n")
        status.update("page")
        page = write_page(curation_page(found, pictures, args.run or args.vectors), _place(out.uri))
    for line in found.notes:
        console.print(line, soft_wrap=True)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts().items())
    console.print(
        f"{found.num_rows:,} samples: {counts}",
        f"findings: {out.uri}/{TABLE}",
        f"page: {page}",
        f"to go through them: python -m conr_ray.browse {out.uri}",
        sep="\n",
        soft_wrap=True,
    )


def _about(args: argparse.Namespace, num_rows: int, pictures: Pictures | None) -> dict[str, Any]:
    """What the findings are about."""
    from conr_ray.curation.about import about

    if args.run is not None:
        return about(run=absolute(args.run).rstrip("/") or "/")
    table = {"vectors": absolute(args.vectors), "column": args.column or _COLUMN}
    where = {} if pictures is None else {"what": pictures.what, "images": absolute(pictures.place)}
    return about(**table, num_rows=num_rows, **where)


def _place(uri: str) -> str:
    return f"{uri}/{_PAGE}"


def _check(args: argparse.Namespace) -> None:
    if (args.run is None) == (args.vectors is None):
        raise UserError("give one of --run DIR and --vectors FILE; see --help")
    if args.run is not None:
        for option in ("images", "column", "image_column"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UserError(f"--{name} has no effect with --run: leave it out")
    elif args.data is not None:
        raise UserError("--data has no effect with --vectors: name the pictures with --images")
    if args.image_column is not None and args.images is None:
        raise UserError("--image-column has no effect without --images: leave it out")


def _opened(args: argparse.Namespace, folder: Path) -> tuple[Samples, Pictures | None, list[str]]:
    """The samples, their pictures, and lines on what is not there."""
    from conr_ray.curation.pictures import pictures_at
    from conr_ray.curation.run import of_run
    from conr_ray.curation.samples import of_table

    if args.run is not None:
        return of_run(absolute(args.run).rstrip("/") or "/", args.data, folder)
    samples = of_table(args.vectors, args.column or _COLUMN, folder)
    if args.images is None:
        return samples, None, []
    return samples, pictures_at(args.images, args.image_column or "image", samples.keys), []


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.curate",
        description="Find near-duplicates, outliers, wrong-looking members and blank or broken "
        "pictures of a run's samples or of a table of vectors.",
    )
    parser.add_argument("--run", metavar="DIR", help="folder of a run, or s3://bucket/folder")
    parser.add_argument(
        "--data", metavar="PATH", help="with --run: where its samples are now (its data.path)"
    )
    parser.add_argument(
        "--vectors",
        metavar="FILE",
        help="Parquet file of vectors, of conr_ray.embed, conr_ray.predict or others; or s3://...",
    )
    parser.add_argument("--column", help="with --vectors: column of vectors (default: embedding)")
    parser.add_argument(
        "--images",
        metavar="PATH",
        help="with --vectors: the folder or Parquet that its column path or row refers to",
    )
    parser.add_argument(
        "--image-column", help="with --images: column of Parquet with images (default: image)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write to (default: that of the run, or curation)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
