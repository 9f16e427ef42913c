"""What is asked of an object store is asked again: connections drop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from conr_ray.errors import StorageError
from conr_ray.storage.files import Folder

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


class PatientFolder(Folder):
    """A folder whose store is asked again while it does not answer."""

    def read_bytes(self, name: str) -> bytes | None:
        """As `Folder` does; none is written empty, but an answer may be cut short."""
        read = super().read_bytes

        def whole() -> bytes | None:
            data = read(name)
            if data == b"" and not self.is_local:
                raise StorageError(f"{self.uri}/{name} cannot be read: no content has arrived")
            return data

        return patient(whole, self.is_local)()

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """As `Folder` does."""
        patient(super().write_bytes, self.is_local)(name, data)

    def delete_file(self, name: str) -> None:
        """As `Folder` does; a first attempt without an answer may have deleted it."""
        delete, tried = super().delete_file, False

        def gone() -> None:
            nonlocal tried
            if not tried or self.has(name):
                tried = True
                delete(name)

        patient(gone, self.is_local)()

    def _asked(self, what: Any) -> Any:
        return patient(super()._asked, self.is_local)(what)
