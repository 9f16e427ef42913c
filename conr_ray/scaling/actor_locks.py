"""Locks among the processes of a Ray cluster, for storage without file locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conr_ray.storage.locks import Lock

_NAMESPACE = "conr_ray"


@dataclass(frozen=True)
class ActorLocks:
    """A lock is a named actor: its creator holds it, and it ends with its creator."""

    def __call__(self, name: str) -> Lock:
        """The lock of a name, which may be held elsewhere."""
        return _ActorLock(name)


class _Held:
    """Holds a name."""

    def ready(self) -> bool:
        return True


class _ActorLock:
    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    def __enter__(self) -> _ActorLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actor is not None:
            import ray

            ray.kill(self._actor)

    def acquired(self) -> bool:
        if self._actor is None:
            import ray

            options = {"name": f"lock-{self._name}", "namespace": _NAMESPACE}
            try:
                actor: Any = ray.remote(num_cpus=0)(_Held).options(**options).remote()
                ray.get(actor.ready.remote())
            except (ValueError, ray.exceptions.RayActorError):
                # Another holder has the name.
                return False
            self._actor = actor
        return True
