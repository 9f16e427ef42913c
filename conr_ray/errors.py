"""Errors for users: every message is one line that names the cause and the remedy.

Names of files and columns, and what libraries say of them, come from outside: the errors show them
as `printable` does. If the remedy is a setting, which a command and Python write in two ways, the
error has its own class, and the command or function adds the setting to the message.
"""

# Not printable for Python, but part of words and harmless: spaces of several widths, and joiners.
_HARMLESS = frozenset("\u00a0\u200c\u200d\u202f\u3000")
_LONGEST_REASON = 500


def printable(text: str) -> str:
    """`text` from outside in one line that does to a terminal, a page or a file what it says.

    Line ends, control characters, marks that change the direction of text, and what is no text at
    all, such as bytes of a file name, are written as Python escapes them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class UserError(ValueError):
    """A setting, file or command that cannot work; commands exit with status 2.

    Args:
        message: one line with the cause, what was found, and the remedy; what does not print is
            written as Python escapes it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class StorageError(UserError):
    """A folder or bucket that cannot be opened, read or written.

    Attributes:
        setting: name of the setting that gave the folder, if that is known.
    """

    setting: str | None = None


class NotShared(StorageError):
    """A folder that the nodes of a cluster do not share."""


class FolderTaken(UserError):
    """A folder that already holds a run.

    Attributes:
        same_run: whether it is the requested run, which can be resumed.
    """

    def __init__(self, message: str, *, same_run: bool = False) -> None:
        super().__init__(message)
        self.same_run = same_run


class BadSetting(UserError):
    """A value that a setting cannot have; the message begins with `setting=value`."""

    @property
    def as_option(self) -> str:
        """The message with the setting as commands write it."""
        setting, _, rest = str(self).partition("=")
        return f"--{setting.replace('_', '-')} {rest}"


class RunFailed(RuntimeError):
    """A run that started but cannot continue; commands exit with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RunCollapsed(RunFailed):
    """A run whose embeddings coincide: no score of it means anything."""


class RunStopped(RuntimeError):
    """A run that was asked to stop, and has written a checkpoint from which it goes on."""


class WorkerFailed(RunFailed):
    """A worker that cannot go on, while the run's other workers may still wait for it."""


class OutOfMemory(WorkerFailed):
    """A worker that has no memory left."""


class SampleLost(WorkerFailed):
    """A sample that was there when the data were opened, and cannot be read any more."""


def last_line(error: object) -> str:
    """The last line of an error's text, which in a chain of tracebacks names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _short(lines[-1] if lines else type(error).__name__)


def one_line(error: object) -> str:
    """What an error says, for a part of a line; its type if it says nothing."""
    return _short(" ".join(str(error).split()).rstrip(".") or type(error).__name__)


def _short(text: str) -> str:
    """What stores and databases say begins with where, and ends with why."""
    if len(text) <= _LONGEST_REASON:
        return text
    kept = (_LONGEST_REASON - 3) // 2
    return f"{text[:kept]}...{text[-kept:]}"
