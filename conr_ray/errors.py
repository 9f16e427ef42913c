"""Errors for users: every message is one line that names the cause and the remedy.

If the remedy is a command-line option, the error has its own class, and the command adds the option
to the message.
"""


class UserError(ValueError):
    """A setting, file or command that cannot work; commands exit with status 2."""


class StorageError(UserError):
    """A folder or bucket that cannot be opened, read or written."""


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


class BadWorkers(UserError):
    """A number of workers that cannot share a batch; the message begins with the number."""


class RunFailed(RuntimeError):
    """A run that started but cannot continue; commands exit with status 1."""


class RunCollapsed(RunFailed):
    """A run whose embeddings coincide: no score of it means anything."""


class RunStopped(RuntimeError):
    """A run that was asked to stop, and has written a checkpoint from which it goes on."""


class OutOfMemory(RunFailed):
    """A worker has no memory left, while the run's other workers may still wait for it."""


def last_line(error: object) -> str:
    """The last line of an error's text, which in a chain of tracebacks names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
