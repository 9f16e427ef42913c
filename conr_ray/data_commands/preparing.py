"""`python -m conr_ray.data prepare`: a benchmark set as one Parquet table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from conr_ray.errors import UserError, printable


def add_parser(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "prepare",
        help="a set of the paper and its neighbours as one Parquet table",
        description="Writes a benchmark set as one Parquet table, out of its official archive or "
        "folder in --root; what is missing there is fetched, where its terms let it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="cifar10, cifar20, cifar100, stl10, tiny_imagenet, imagenet10, imagenet_dogs, "
        "imagenet50, imagenet100 or imagenet200",
    )
    parser.add_argument(
        "--root", metavar="DIR", required=True, help="folder of the official archive or folder"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the table to write (default: DIR/NAME.parquet)"
    )
    parser.add_argument(
        "--unlabelled",
        action="store_true",
        help="STL-10: with its 100,000 unlabelled images, as the split unlabeled",
    )
    parser.add_argument(
        "--no-download", dest="download", action="store_false", help="fetch nothing"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the checksum of ImageNet's archive too, which takes minutes",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prepare and print what there is."""
    from conr_ray.data.benchmark_sets import SETS, Options
    from conr_ray.data.benchmark_sets.preparing import prepare

    name = args.name.lower().replace("-", "_")
    if name not in SETS:
        raise UserError(
            f"prepare {printable(args.name)}: no such set; choose from {', '.join(SETS)}"
        )
    root = Path(args.root).expanduser().absolute()
    usual = f"{name}_unlabelled.parquet" if args.unlabelled else f"{name}.parquet"
    out = root / usual if args.out is None else Path(args.out).expanduser().absolute()
    options = Options(args.unlabelled, args.download, args.verify)
    print(prepare(SETS[name], root, out, options).told(SETS[name]))
