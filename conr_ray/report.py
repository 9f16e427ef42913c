"""`python -m conr_ray.report`: report on a run, a search or predictions as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from conr_ray.command_line import add_edits_option, make_console, run_command
from conr_ray.command_parser import Parser
from conr_ray.errors import UserError

if TYPE_CHECKING:
    from conr_ray.engine.run_directory import RunDirectory

# The options that each kind of output accepts.
_HEEDED = {
    "DIR": {"out", "baseline", "study"},
    "--figures": {"study"},
    "--compare": {"out", "study"},
    "--wandb": {"search"},
}


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, write the report, print where it is."""
    args = _parser().parse_args(arguments)
    way = _way(args)
    make_console().print(_drawn(way, args), soft_wrap=True)


def _drawn(way: str, args: argparse.Namespace) -> str:
    """Write the output; return a line that says where it is."""
    if way == "--wandb":
        return f"view: {_save_view(args.wandb, args.search)}"
    from conr_ray.reporting.report_file import write_comparison, write_report, write_static

    if way == "--compare":
        directories = [_directory(uri) for uri in args.compare]
        return f"report: {write_comparison(directories, args.out or 'compare.html', args.study)}"
    if way == "--figures":
        names = write_static(_directory(args.directory), args.figures, args.study)
        return f"figures in {args.figures}: {', '.join(names)}"
    baseline = _directory(args.baseline) if args.baseline else None
    directory = _directory(args.directory)
    place = write_report(
        directory, out=args.out, study_url=args.study, baseline=baseline, edits=args.edits
    )
    return f"report: {place}"


def _way(args: argparse.Namespace) -> str:
    """The kind of output, a key of `_HEEDED`; raise UserError if options conflict."""
    if sum(map(bool, (args.directory, args.compare, args.wandb))) != 1:
        raise UserError("give one of DIR, --compare DIR DIR ... and --wandb; see --help")
    way = "--compare" if args.compare else "--wandb" if args.wandb else "DIR"
    if args.figures:
        if way != "DIR":
            raise UserError(f"--figures draws one run or search: leave out {way}")
        way = "--figures"
    for option in ("out", "baseline", "study", "search"):
        if getattr(args, option) is not None and option not in _HEEDED[way]:
            raise UserError(f"--{option} has no effect with {way}: leave it out")
    if not args.edits and way != "DIR":
        raise UserError(f"--no-edits has no effect with {way}: leave it out")
    return way


def _directory(uri: str) -> RunDirectory:
    from conr_ray.engine.run_directory import RunDirectory

    return RunDirectory(uri.rstrip("/") or "/")


def _save_view(place: str, search: str | None) -> str:
    """Create the W&B view of a search; return its URL."""
    # W&B's library takes seconds to import.
    from conr_ray.reporting.wandb_workspace import save_workspace, search_workspace, space_of

    entity, _, project = place.partition("/")
    if not entity or not project or search is None:
        raise UserError("--wandb: give ENTITY/PROJECT, and a search with --search")
    space = space_of(entity, project, search)
    return save_workspace(search_workspace(entity, project, search, space))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.report",
        description="Report on a run, a search or predictions as one HTML file.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="DIR",
        help="folder of a run, a search or predictions, or s3://bucket/folder",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: report.html in DIR; for --compare, compare.html here)",
    )
    parser.add_argument("--baseline", metavar="DIR", help="another run to compare the run with")
    add_edits_option(parser, "report")
    parser.add_argument(
        "--study", metavar="URL", help="database of the search's study, if it is in one"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="compare runs, and best trials of searches, in one file",
    )
    parser.add_argument(
        "--figures", metavar="OUT", help="write SVG and PNG for papers into this folder instead"
    )
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="create a view of a search logged there"
    )
    parser.add_argument("--search", metavar="NAME", help="with --wandb: the search's name")
    return parser


if __name__ == "__main__":
    run_command(main)
