"""What is asked of an object store is asked again: connections drop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from conr_ray.errors import StorageError

P = ParamSpec("P")
T = TypeVar("T")
WAITS_S = (0.5, 2.0, 5.0)
# What the stores say where asking again changes nothing.
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY", "HTTP status 401", "HTTP status 403")


def is_final(message: str) -> bool:
    """Whether asking again would change nothing, by what a store has said."""
    return any(told in message for told in _FINAL)


def patient(call: Callable[P, T], is_local: bool) -> Callable[P, T]:
    """`call`, which is repeated a few times, after waits, while a store does not answer.

    On this machine, `is_local`, nothing is repeated.
    """
    if is_local:
        return call

    @wraps(call)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for wait_s in WAITS_S:
            try:
                return call(*args, **kwargs)
            except (FileNotFoundError, PermissionError):
                raise
            except (OSError, StorageError) as error:
                if is_final(str(error)):
                    raise
            time.sleep(wait_s)
        return call(*args, **kwargs)

    return repeated
