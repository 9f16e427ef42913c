"""What a user can be told: every message is one line that names the cause and the remedy."""


class UserError(ValueError):
    """A setting, file or command that cannot work; the commands leave with status 2."""


class RunFailed(RuntimeError):
    """A run that started well and cannot go on; the commands leave with status 1."""


def last_line(error: object) -> str:
    """The last line of an error's text, which in a chain of tracebacks names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
