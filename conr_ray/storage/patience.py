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
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY", "HTTP status 4")
_BUSY = ("HTTP status 408", "HTTP status 425", "HTTP status 429", "SLOW_DOWN")
# What they say of credentials, by S3 and by Arrow, which writes the same in another way.
_EXPIRED = ("ExpiredToken", "EXPIRED_TOKEN", "TokenRefreshRequired", "RequestExpired")
_REFUSED = (
    *("InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "SignatureDoesNotMatch", "InvalidToken"),
    *("SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT"),
    *("INVALID_SIGNATURE", "MISSING_AUTHENTICATION_TOKEN"),
)


def is_final(message: str) -> bool:
    """Whether asking again would change nothing, by what a store has said."""
    if any(told in message for told in _BUSY):
        return False
    return any(told in message for told in _FINAL) or bool(remedy_of(message))


def remedy_of(message: str) -> str:
    """What a user can do about what a store has said of the credentials; empty for other words."""
    if any(told in message for told in _EXPIRED):
        return "the credentials have expired: renew them, then start the same command again"
    if any(told in message for told in _REFUSED):
        return "check the access key, the secret and the session token in the environment"
    return ""


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
