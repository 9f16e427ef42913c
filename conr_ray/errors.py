"""What a user can be told: every message is one line that names the cause and the remedy."""


class UserError(ValueError):
    """A setting, file or command that cannot work; the commands leave with status 2."""


class RunFailed(RuntimeError):
    """A run that started well and cannot go on; the commands leave with status 1."""
