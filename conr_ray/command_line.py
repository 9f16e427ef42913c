"""What the four commands share: arguments, and how errors reach the user."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from conr_ray.config import RunConfig
from conr_ray.errors import FolderTaken, NotShared, RunFailed, StorageError, UserError
from conr_ray.scaling.cluster import ClusterOptions
from conr_ray.scaling.remote_command import run_on_head


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other error: one line, status 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see --help")


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m conr_ray.<command>`, with the arguments that all have."""
    parser = Parser(prog=f"python -m conr_ray.{command}", description=description)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="override a field, such as optim.lr=0.1; may be repeated",
    )
    parser.add_argument(
        "--storage",
        default=os.environ.get("CONR_RAY_STORAGE", "runs"),
        metavar="DIR",
        help="folder of run directories, or s3://bucket/folder ($CONR_RAY_STORAGE, else runs)",
    )
    parser.add_argument("--name", help="its folder there (what is run, and the time)")
    parser.add_argument(
        "--resume", action="store_true", help="go on where what has that --name was stopped"
    )
    return parser


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Arguments that say where a command runs, and on what."""
    parser.add_argument(
        "--address",
        help="of a Ray cluster: auto on one of its nodes or in a job, ray://host:10001 from "
        "elsewhere (a Ray of the command's own)",
    )
    parser.add_argument(
        "--autoscaling",
        action="store_true",
        help="the cluster starts nodes when there is work, so do not ask whether it has room now "
        "(known by itself on a head node of `ray up`)",
    )
    parser.add_argument("--cpus-per-worker", type=int, help="cores of each worker (by --address 1)")
    parser.add_argument(
        "--gpus-per-worker", type=float, help="GPUs of each worker (1 where there are any, else 0)"
    )


def cluster_options(args: argparse.Namespace) -> ClusterOptions:
    """What the arguments of `add_cluster_options` say."""
    return ClusterOptions(
        args.address, args.autoscaling, args.cpus_per_worker, args.gpus_per_worker
    )


def sent_to_head(module: str, arguments: Sequence[str], args: argparse.Namespace) -> bool:
    """Run the command on the cluster instead where --address is elsewhere; whether it did."""
    if not (args.address or "").startswith("ray://"):
        return False
    run_on_head(module, arguments, args.address)
    return True


def make_console() -> Console:
    """Standard output; wide where it is no terminal, since a file has no edge."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def directory_uri(args: argparse.Namespace, subject: str) -> str:
    """The folder that --storage and --name mean, absolute; by default named after `subject`."""
    if args.resume and not args.name:
        raise UserError("--resume needs the --name of what was stopped")
    name = args.name or f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "/" in name or name.startswith("."):
        raise UserError(f"--name {name}: a name is one folder, without / and leading dot")
    storage = args.storage.rstrip("/")
    return f"{storage if '://' in storage else Path(storage).expanduser().absolute()}/{name}"


def absolute_data_path(config: RunConfig) -> dict[str, str]:
    """An override that makes data.path absolute, so that it means the same in every process."""
    path = config.data.path
    if path is None or "://" in path:
        return {}
    return {"data.path": str(Path(path).expanduser().absolute())}


@contextmanager
def resumable(uri: str) -> Iterator[None]:
    """Tells whoever interrupts what is inside how to go on with the run directory `uri`."""
    try:
        yield
    except KeyboardInterrupt:
        name = uri.rpartition("/")[2]
        told = f": the same command with --name {name} --resume goes on"
        raise KeyboardInterrupt(told) from None


@contextmanager
def folder_option(option: str) -> Iterator[None]:
    """Add `option`, which sets the folder, and the remedy to errors about that folder.

    Also works as a decorator.
    """
    try:
        yield
    except (FolderTaken, StorageError) as error:
        raise with_remedy(error, option) from None


def with_remedy(error: Exception, option: str) -> Exception:
    """An error about the folder set by `option`, with the remedy; other errors unchanged."""
    match error:
        case FolderTaken():
            resume = "add --resume, or " if error.same_run else ""
            return UserError(f"{error}: {resume}choose another --name")
        case NotShared():
            remedy = f"give {option} s3://bucket/folder, or a folder that all nodes mount"
            return UserError(f"{option}: {error}: {remedy}")
        case StorageError():
            return UserError(f"{option}: {error}")
        case _:
            return error


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: bad input leaves with status 2, a failed run with 1, Ctrl-C with 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(f"interrupted{stop}", file=sys.stderr)
        sys.exit(130)
