"""A folder on this machine for what is temporary and this user's alone: Ray's files, error logs."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from conr_ray.errors import UserError
from conr_ray.storage import disk

# Variables that name what is written in a home, by this package and by libraries.
_WRITTEN = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "MPLCONFIGDIR": "matplotlib"}


def private_folder(
    variable: str | None = None, *, room: int = 0, longest: int | None = None
) -> Path:
    """The user's folder conr_ray-UID, with mode 0700, in the first place that can hold it.

    Args:
        variable: environment variable that, if set, names the only place that is tried; without,
            these are $TMPDIR and the system's folders.
        room: free bytes that must be there.
        longest: characters that its path may have.

    Raises:
        UserError: no place can hold it.
    """
    asked = os.environ.get(variable) if variable else None
    usual = [os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"]
    found = []
    for place in [asked] if asked else filter(None, usual):
        folder = Path(place).absolute() / f"conr_ray-{os.geteuid()}"
        fault = _fault(folder, room, longest)
        if fault is None:
            return folder
        found.append(f"{folder}: {fault}")
    raise UserError(
        f"no folder for temporary files ({'; '.join(found)}): set {variable or 'TMPDIR'} to a "
        "folder of yours with a short path and free space"
    )


def ensure_home() -> None:
    """Give this process, and those that it starts, a home and places for caches, if it has none.

    In containers and batch jobs a user may have no home, or one that cannot be written. One that
    can be read stays: keys are in it.

    Raises:
        UserError: there is no folder for temporary files either.
    """
    home = os.path.expanduser("~")
    # W&B's own process knows no other way to the home.
    os.environ["HOME"] = str(private_folder()) if home == "~" else home
    if home == "~":
        fault = "this user has no home"
    else:
        missing = [name for name in _WRITTEN if not os.environ.get(name)]
        if not missing or _can_be_made(Path(home, ".cache")):
            return
        os.environ |= {name: str(private_folder() / _WRITTEN[name]) for name in missing}
        fault = f"HOME={home} cannot be written"
    disk.tell(f"{fault}: caches are in {private_folder()}; CONR_RAY_CACHE moves decoded images")


def _can_be_made(folder: Path) -> bool:
    """Whether a folder is there and can be written, or can be made."""
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _fault(folder: Path, room: int, longest: int | None) -> str | None:
    """Create `folder`; why it cannot be used, or None."""
    if longest is not None and len(os.fsencode(folder)) > longest:
        return f"longer than {longest} characters"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        # In a folder of all users, another one may have made it, or a link to somewhere.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return "belongs to another user"
        folder.chmod(0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            return "cannot be written"
        if (free := shutil.disk_usage(folder).free) < room:
            return f"{free >> 20} MiB free, {room >> 20} needed"
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "no space left" if full else str(error.strerror).lower()
    return None
