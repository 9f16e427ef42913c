"""What went wrong outside of this package, where, and what to do about it, in one line."""

from __future__ import annotations

import errno
import re
import traceback
from importlib import metadata
from pathlib import Path

from conr_ray.errors import last_line

_PACKAGE = Path(__file__).parent
_LONGEST = 300
_REMEDIES = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EACCES: "give this user access to it, or choose another folder",
    errno.EPERM: "give this user access to it, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs, or raise the system's fs.file-max",
    errno.ENOMEM: "close other programs, or ask for fewer workers",
    errno.EADDRINUSE: "try again, or end the program that uses the port",
    # Storage that went away.
    errno.EIO: "check the disk or mount, then use --resume",
    errno.ESTALE: "check the mount, then use --resume",
    errno.ENOTCONN: "check the mount, then use --resume",
    errno.ENODEV: "check the mount, then use --resume",
}


def described(error: BaseException) -> str:
    """What, where and, if it is known, a remedy.

    Where is the file that an OSError names, else the last place in this package.
    """
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        what, remedy = error.strerror, _REMEDIES.get(error.errno or 0)
    else:
        places, remedy = [], None
        # Ray's errors quote the traceback of another process.
        text = str(error)
        what = f"{type(error).__name__}: {last_line(text) if 'Traceback' in text else text}"
    if isinstance(error, ModuleNotFoundError):
        remedy = _installed_by(error.name)
    parts = [*(places or _place(error)), what, *([remedy] if remedy else [])]
    line = " ".join(": ".join(parts).split()).removesuffix(":")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _installed_by(module: str | None) -> str:
    """How a module that is missing gets here: by an extra, if only that brings it."""
    # Where the names of module and package differ.
    wanted = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
    top = (module or "").partition(".")[0]
    name = wanted.get(top, top).replace("_", "-").lower()
    try:
        lines = metadata.requires("conr_ray") or []
    except metadata.PackageNotFoundError:
        lines = []
    named = [line for line in lines if re.match(rf"{re.escape(name)}(?![\w-])", line.lower())]
    extras = [e for line in named for e in re.findall(r"extra == ['\"]([\w-]+)['\"]", line)]
    if extras and all("extra ==" in line for line in named):
        first = next((extra for extra in extras if extra != "dev"), extras[0])
        return f"pip install 'conr_ray[{first}]'"
    return "install conr_ray again, with constraints.txt"


def _place(error: BaseException) -> list[str]:
    """The last line of this package that an error passed, as in a list of names; empty if none."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename) for frame in frames]
    own = [
        frame
        for frame, file in zip(frames, files, strict=True)
        # All commands pass through this one.
        if _PACKAGE in file.parents and file.name != "command_line.py"
    ]
    if not own:
        return []
    return [f"{Path(own[-1].filename).relative_to(_PACKAGE.parent)}, line {own[-1].lineno}"]
