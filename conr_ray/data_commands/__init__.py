"""The commands of `python -m conr_ray.data`: they parse, call `conr_ray.data`, and print."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from conr_ray.command_parser import Parser
from conr_ray.data_commands import caches, inspecting, preparing


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments and run the command that they name."""
    args = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.data",
        description="What a data set holds, the benchmark sets, and the cache.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (inspecting, preparing, caches):
        module.add_parser(commands)
    return parser
