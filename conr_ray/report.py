"""`python -m conr_ray.report`: draw what happened in a run or a search, as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from conr_ray.command_line import Parser, make_console, run_command
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.reporting.report_file import write_comparison, write_report


def main(arguments: Sequence[str]) -> None:
    """Parse, write, print where."""
    args = _parser().parse_args(arguments)
    if bool(args.directory) == bool(args.compare):
        raise UserError("name one directory, or several with --compare; see --help")
    if args.compare and args.baseline:
        raise UserError("--baseline goes with one run: name it with --compare instead")
    console = make_console()
    if args.compare:
        directories = [RunDirectory(uri.rstrip("/")) for uri in args.compare]
        written = write_comparison(directories, args.out or "compare.html", args.study)
    else:
        written = write_report(
            RunDirectory(args.directory.rstrip("/")),
            out=args.out,
            study_url=args.study,
            baseline=RunDirectory(args.baseline.rstrip("/")) if args.baseline else None,
        )
    console.print(f"report: {written}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.report",
        description="Draw what happened in a run or a search, as one HTML file.",
    )
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="of a run or a search, or s3://bucket/folder"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the file (report.html in DIR; compare.html here)"
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="DIR", help="runs, and best trials of searches, in one file"
    )
    parser.add_argument("--baseline", metavar="DIR", help="a run to compare a run with")
    parser.add_argument(
        "--study", metavar="URL", help="database of the search's study, where it is in one"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
