"""`python -m conr_ray.data caches`: what the cache holds, and removing it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conr_ray.command_line import make_console
from conr_ray.errors import RunFailed, UserError, printable

if TYPE_CHECKING:
    from conr_ray.data.cache import Entry

_DAYS = re.compile(r"(\d{1,6})d?")


def add_parser(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "caches",
        help="list and remove what can be made anew: decoded copies, vectors, what is browsed",
        description="What lies in the cache ($CONR_RAY_CACHE) and can be made anew. Nothing that "
        "is in use is removed.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list it (this is the default)", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="as JSON")
    removing = actions.add_parser("remove", help="remove some of it", allow_abbrev=False)
    removing.add_argument(
        "names",
        nargs="*",
        metavar="NAME_OR_PATH",
        help="the name of an entry, a kind such as embeddings, or the path of data: all that was "
        "decoded of them",
    )
    removing.add_argument("--unused-for", metavar="DAYS", help="what was not used for so long")
    removing.add_argument("--all", action="store_true", help="all of it")
    actions.add_parser(
        "clean", help="remove what killed processes have left half made", allow_abbrev=False
    )
    parser.set_defaults(run=run, json=False)


def run(args: argparse.Namespace) -> None:
    """List, remove or clean."""
    {"remove": _remove, "clean": _clean}.get(args.action, _list)(args)


def _list(args: argparse.Namespace) -> None:
    from rich.table import Table

    from conr_ray.data.cache import (
        absolute,
        ago,
        cache_limit,
        default_cache_dir,
        entries,
        size_of,
        told_of_limit,
    )

    root, console = default_cache_dir(), make_console()
    found = entries(root)[::-1]
    if args.json:
        told = {
            "cache": absolute(str(root)),
            "limit_bytes": cache_limit(root),
            "entries": [_as_json(entry) for entry in found],
        }
        print(json.dumps(told, indent=1))
        return
    limit = told_of_limit(root)
    if found:
        table = Table(box=None, pad_edge=False)
        for column in ("name", "what", "made from", "size", "last used", ""):
            table.add_column(column, justify="right" if column == "size" else "left")
        for entry in found:
            used = "in use" if entry.in_use else ""
            size, last = size_of(entry.num_bytes), ago(entry.used_at)
            table.add_row(entry.name, entry.kind, entry.made_from, size, last, used)
        console.print(table)
    total = size_of(sum(entry.num_bytes for entry in found))
    console.print(f"{len(found):,} in all, {total}; {limit}", soft_wrap=True)


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "kind": entry.kind,
        "made_from": entry.made_from,
        "source_path": entry.source_path,
        "bytes": entry.num_bytes,
        "used_at": entry.used_at,
        "in_use": entry.in_use,
        "whole": entry.is_whole,
    }


def _remove(args: argparse.Namespace) -> None:
    from conr_ray.data.cache import default_cache_dir, entries, remove, size_of, told

    if not args.names and not args.all and args.unused_for is None:
        raise UserError("caches remove: name what to remove, or give --unused-for DAYS, or --all")
    found = entries(default_cache_dir())
    if args.names:
        chosen = {entry.path for entry in _named(args.names, found)}
        found = [entry for entry in found if entry.path in chosen]
    if args.unused_for is not None:
        found = _unused(args.unused_for, found)
    kept = 0
    for entry in found:
        if remove(entry):
            print(f"removed {told(entry)}")
        else:
            kept += 1
            print(f"kept {told(entry)}: it is in use")
    freed = size_of(sum(entry.num_bytes for entry in found if not entry.path.exists()))
    print(f"{len(found) - kept:,} removed, {freed}")
    if kept:
        raise RunFailed(f"{kept:,} in use were kept: end the processes that have them open")


def _named(names: Sequence[str], found: Sequence[Entry]) -> list[Entry]:
    from conr_ray.data.cache import absolute

    chosen: list[Entry] = []
    for name in names:
        # Half a dozen digits tell entries apart; fewer may be a slip.
        by_hash = [e for e in found if len(name) >= 6 and e.path.name.startswith(name)]
        of_kind = [entry for entry in found if entry.kind == name or entry.name == name]
        place = absolute(name).rstrip("/")
        of_path = [e for e in found if e.source_path in (place, f"{place}/")]
        some = by_hash or of_kind or of_path
        if not some:
            raise UserError(
                f"caches remove {printable(name)}: the cache holds nothing of that name or path; "
                "python -m conr_ray.data caches lists what it holds"
            )
        chosen += some
    return chosen


def _unused(text: str, found: Sequence[Entry]) -> list[Entry]:
    import time

    days = _DAYS.fullmatch(text)
    if days is None:
        raise UserError(f"--unused-for {printable(text)}: give a number of days, such as 30")
    before = time.time() - int(days[1]) * 86400
    return [entry for entry in found if entry.used_at < before]


def _clean(args: argparse.Namespace) -> None:
    from conr_ray.data.cache import clean, default_cache_dir, make_room

    root = default_cache_dir()
    found = clean(root, deep=True)
    for path in found:
        print(f"removed {path}")
    print(f"{len(found):,} left by killed processes removed")
    make_room(root, 0)
