"""`python -m conr_ray.browse`: look at clusters, and change and name them, on a local page."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence

from conr_ray.command_line import add_clusters_option, make_console, run_command
from conr_ray.command_parser import Parser
from conr_ray.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, print the address of the page, serve it until the end."""
    args = _parser().parse_args(arguments)
    try:
        from conr_ray.browsing.server import listening, serve
    except ImportError as error:
        raise UserError(
            f"browse needs a package that is not installed ({error.name}): "
            'pip install "conr_ray[browse]"'
        ) from None
    from conr_ray.browsing.opened import open_collection
    from conr_ray.browsing.session import Session

    collection = open_collection(args.directory.rstrip("/") or "/", args.clusters)
    with Session(collection) as session, listening(args.port) as opened:
        token = secrets.token_urlsafe(24)
        port = opened.getsockname()[1]
        console = make_console()
        console.print(f"browse: http://127.0.0.1:{port}/?token={token}", soft_wrap=True)
        console.print("The page is for this machine alone; Ctrl-C ends it.")
        serve(session, opened, token)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.browse",
        description="Look at clusters, change and name them, on a page of this machine.",
    )
    parser.add_argument(
        "directory", metavar="DIR", help="folder of a run, of predictions, or of conr_ray.curate"
    )
    add_clusters_option(parser)
    parser.add_argument(
        "--port", type=int, default=0, help="of the page (default: one that is free)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
