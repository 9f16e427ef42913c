"""What went wrong outside of this package, and what to do about it, in one line."""

from __future__ import annotations

import errno

from conr_ray.errors import last_line

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
    """What, where and, if it is known, a remedy."""
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        parts = [*places, error.strerror, *filter(None, [_REMEDIES.get(error.errno or 0)])]
        return _shortened(": ".join(parts))
    kind, message = type(error).__name__, last_line(error)
    if isinstance(error, ImportError):
        return _shortened(f"{kind}: {message}: install conr_ray again, with constraints.txt")
    return _shortened(kind if kind == message else f"{kind}: {message}")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
