"""Arguments and error reporting that the commands share.

A command imports what it needs after parsing its arguments, so that help and errors in arguments
appear at once.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import secrets
import shlex
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from conr_ray.command_parser import Parser
from conr_ray.engine.stopping import signals_handled, stop_request
from conr_ray.errors import (
    BadSetting,
    FolderTaken,
    NotShared,
    RunFailed,
    RunStopped,
    StorageError,
    UserError,
)
from conr_ray.remedies import described
from conr_ray.storage.private_folder import ensure_home, private_folder

if TYPE_CHECKING:
    from conr_ray.config import RunConfig
    from conr_ray.scaling.resources import ClusterOptions
    from conr_ray.scaling.watch import Limits
    from conr_ray.storage.files import Folder

# Of a folder's name, before the time.
_LONGEST_SUBJECT = 40


def add_images_options(parser: argparse.ArgumentParser) -> None:
    """Which images a command applies a network to: `--images`, or `--dataset` with `--set`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--images",
        metavar="PATH",
        help="images in any form that is read: a folder, zip, tar, Parquet ...; or s3://..., https://...",
    )
    what.add_argument("--dataset", metavar="PRESET", help="the data of a preset, such as digits")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="with --dataset: set a config field, such as data.path=DIR; can be repeated",
    )


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m conr_ray.<command>`, with the common arguments."""
    parser = Parser(prog=f"python -m conr_ray.{command}", description=description)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="set a config field, such as optim.lr=0.1; can be repeated",
    )
    parser.add_argument(
        "--storage",
        default=default_storage(),
        metavar="DIR",
        help="folder for results, or s3://bucket/folder (default: $CONR_RAY_STORAGE, else runs)",
    )
    parser.add_argument(
        "--name", help="folder in --storage (default: preset, own data or file, and time)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run or search called --name"
    )
    return parser


def add_cluster_options(parser: argparse.ArgumentParser, *, watched: bool = True) -> None:
    """Arguments for where a command runs and with what resources, and how it is `watched`."""
    parser.add_argument(
        "--address",
        help="Ray cluster: auto on one of its nodes or in a job, ray://host:10001 from elsewhere "
        "(default: start Ray on this machine)",
    )
    parser.add_argument(
        "--autoscaling",
        action="store_true",
        help="the cluster starts nodes on demand: do not require free resources now "
        "(detected on a head node started by `ray up`)",
    )
    parser.add_argument(
        "--cpus-per-worker", type=int, help="CPU cores per worker (with --address: 1)"
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        help="GPUs per worker (default: 1 if there are any, else 0)",
    )
    if not watched:
        return
    parser.add_argument(
        "--hang-limit",
        type=_seconds,
        default=1800.0,
        metavar="SECONDS",
        help="end workers that hold up a run for so long, and start all of it again; 0: never "
        "(default: 1800; they are named after half a minute)",
    )


def add_clusters_option(parser: argparse.ArgumentParser) -> None:
    """The argument that chooses clusters of `conr_ray.recluster`, in commands that apply a run."""
    parser.add_argument(
        "--clusters",
        type=_clusters,
        metavar="N",
        help="use the N clusters that conr_ray.recluster has made (default: the run's own)",
    )


def add_edits_option(parser: argparse.ArgumentParser, does: str) -> None:
    """The argument that leaves a person's edits out, in commands that heed them."""
    parser.add_argument(
        "--no-edits",
        dest="edits",
        action="store_false",
        help=f"{does} without what has been changed with conr_ray.browse",
    )


def _clusters(text: str) -> int:
    """The value of an argument that is a number of clusters."""
    if not text.isdecimal() or not 2 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text} is no number of clusters: give 2 or more")
    return int(text)


def _seconds(text: str) -> float:
    """The value of an argument that is a time."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds: give 0 or more")
    return seconds


def cluster_options(args: argparse.Namespace) -> ClusterOptions:
    """The values of the arguments that `add_cluster_options` adds."""
    from conr_ray.scaling.resources import ClusterOptions

    return ClusterOptions(
        args.address, args.autoscaling, args.cpus_per_worker, args.gpus_per_worker
    )


def watch_limits(args: argparse.Namespace) -> Limits:
    """How long workers may do nothing."""
    from conr_ray.scaling.watch import Limits

    return Limits(end_s=args.hang_limit or None)


def sent_to_head(module: str, arguments: Sequence[str], args: argparse.Namespace) -> bool:
    """Run the command on the cluster if --address is ray://...; return whether it did."""
    if not (args.address or "").startswith("ray://"):
        return False
    from conr_ray.scaling.remote_command import run_on_head

    run_on_head(module, arguments, args.address)
    return True


def make_console(*, quiet: bool = False) -> Console:
    """Standard output; 160 columns wide if it is not a terminal. Nothing in a path is markup."""
    console = Console(highlight=False, markup=False, emoji=False, quiet=quiet)
    if not console.is_terminal:
        console.width = 160
    return console


def directory_uri(args: argparse.Namespace, subject: str) -> str:
    """The absolute folder given by --storage and --name; by default named after `subject`."""
    if args.resume and not args.name:
        raise UserError("--resume needs --name, the run or search to resume")
    name = args.name or new_name(subject)
    if "/" in name or name.startswith("."):
        raise UserError(f"--name {name}: give a single folder name, without / or leading dot")
    return f"{absolute(args.storage).rstrip('/')}/{name}"


def default_storage() -> str:
    """The folder for results where none is given."""
    return os.environ.get("CONR_RAY_STORAGE", "runs")


def new_name(subject: str) -> str:
    """A name for a run or search; of two that begin in the same second, each has its own.

    `subject` may be any text: only letters of ASCII, digits and a few marks are taken from it.
    """
    plain = unicodedata.normalize("NFKD", subject).encode("ascii", "ignore").decode()
    subject = re.sub(r"[^\w.-]+", "-", plain)[:_LONGEST_SUBJECT].strip("-.") or "data"
    return f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def absolute(folder: str) -> str:
    """A folder's absolute path, the same in every process; URIs are so already."""
    return folder if "://" in folder else str(Path(folder).expanduser().absolute())


def subject_of(config: RunConfig, preset: str) -> str:
    """What people call a run of `preset`: its name, or the user's own data."""
    from conr_ray.config import load_preset

    own, usual = config.data, load_preset(preset).data
    same = (own.source, own.name, own.classes) == (usual.source, usual.name, usual.classes)
    return preset if same else own.title


def absolute_paths(config: RunConfig, apart: Collection[str] = ()) -> dict[str, str]:
    """Overrides that make paths absolute, so that they are the same in every process.

    The fields `apart` stay.
    """
    paths = {
        "data.path": config.data.path,
        "model.init": config.model.init,
        "clustering.edits": config.clustering.edits,
        "clustering.ids_of": config.clustering.ids_of,
        "model.weights": config.model.weights_file,
    }
    return {
        field: absolute(path)
        for field, path in paths.items()
        if path is not None and field not in apart
    }


@contextmanager
def resumable(uri: str, way_on: Callable[[], str]) -> Iterator[None]:
    """Let signals stop what is inside; add to the message how to resume the directory `uri`.

    `way_on` says what is then done, where the work could not be ended in order.
    """
    again = f"resume with the same command and --name {uri.rpartition('/')[2]} --resume"
    with signals_handled():
        try:
            yield
        except RunStopped as stop:
            raise RunStopped(f"{stop}: {again}, which goes on there") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f": {again}, {way_on()}") from None


def where_result_is(run: Folder) -> list[str]:
    """Lines that name the files with the clusters of a run that has ended, and the next command."""
    lines = [f"assignments: {run.uri}/assignments.parquet"]
    if run.has("clusters.csv"):
        lines[0] += ", for spreadsheets clusters.csv beside it"
    command = f"python -m conr_ray.predict --run {shlex.quote(run.uri)}"
    return [*lines, f"new samples: {command} --images PATH --out predictions"]


@contextmanager
def folder_option(option: str) -> Iterator[None]:
    """Add `option`, which sets the folder, and the remedy to errors about that folder.

    Errors about the value of another option name that one. Also works as a decorator.
    """
    try:
        yield
    except (BadSetting, FolderTaken, StorageError) as error:
        raise with_remedy(error, option) from None


def with_remedy(error: Exception, option: str) -> Exception:
    """An error about the folder set by `option`, with the remedy; other errors unchanged."""
    if isinstance(error, StorageError) and error.setting is not None:
        option = f"--{error.setting}"
    match error:
        case BadSetting():
            return UserError(error.as_option)
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


def _repeat_lost_interrupts() -> None:
    """Repeat a signal that Python drops, since it comes in a callback from C or in a destructor."""
    usual = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is KeyboardInterrupt:
            again = threading.Timer(0.1, os.kill, [os.getpid(), stop_request.told_by])
            again.daemon = True
            again.start()
        else:
            usual(lost)

    sys.unraisablehook = hook


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command; its status is 2 on bad input, 1 on a failure, 130 on Ctrl-C, 143 on SIGTERM.

    Whatever the command or a library raises is one line, and its traceback is in a log file that
    the line names. With CONR_RAY_TRACEBACK=1 it is raised instead.
    """
    _repeat_lost_interrupts()
    try:
        with signals_handled():
            ensure_home()
            main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, RunStopped) as stop:
        print(stop if isinstance(stop, RunStopped) else f"interrupted{stop}", file=sys.stderr)
        sys.exit(128 + stop_request.told_by)
    except Exception as error:
        if os.environ.get("CONR_RAY_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"error: {described(error)}: {_log(error)}", file=sys.stderr)
        sys.exit(1)


def _log(error: Exception) -> str:
    """Write an error's traceback to a file of its own; return where it is."""
    command = Path(sys.argv[0]).stem
    prefix = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        handle, path = tempfile.mkstemp(".log", prefix, private_folder())
        with open(handle, "w", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except (OSError, UserError):
        return "no log file could be written: set CONR_RAY_TRACEBACK=1 to see the traceback"
    return f"traceback in {path}"
