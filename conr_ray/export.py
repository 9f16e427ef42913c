"""`python -m conr_ray.export`: the network of a run for programs without this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from conr_ray.command_line import add_clusters_option, make_console, run_command
from conr_ray.command_parser import Parser
from conr_ray.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, export, print what was written."""
    args = _parser().parse_args(arguments)
    if (args.run is None) == (args.best_of is None):
        raise UserError("give one of --run DIR and --best-of SEARCH; see --help")
    from conr_ray.exporting.export_folder import check_formats, export

    check_formats(args.format)
    from conr_ray.searching.best_run import best_run

    run, chosen_by = best_run(args.best_of, args.study) if args.best_of else (args.run, ())
    files = export(run, args.out, list(dict.fromkeys(args.format)), chosen_by, args.clusters)
    console = make_console()
    for name, size in files.items():
        console.print(f"{name}: {size:,} bytes", soft_wrap=True)
    console.print(f"export: {args.out}; README.md there says how to load it", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.export",
        description="Write the network of a run for programs that do not have this package.",
    )
    parser.add_argument("--run", metavar="DIR", help="folder of a run, or s3://bucket/folder")
    parser.add_argument(
        "--best-of", metavar="SEARCH", help="folder of a search: its best trial is taken"
    )
    parser.add_argument(
        "--study", metavar="URL", help="database of the search's study, if it is in one"
    )
    add_clusters_option(parser)
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="FORMAT",
        help="safetensors, onnx, torchscript or pt2 (torch.export); can be repeated",
    )
    parser.add_argument(
        "--out", required=True, metavar="OUT", help="folder to write, or s3://bucket/folder"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
