"""What went wrong outside of this package, where, and what to do about it, in one line."""

from __future__ import annotations

import errno
import traceback
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
        remedy = "install conr_ray again, with constraints.txt"
    parts = [*(places or _place(error)), what, *([remedy] if remedy else [])]
    line = " ".join(": ".join(parts).split()).removesuffix(":")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


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
