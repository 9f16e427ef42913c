"""Locks among the processes of a Ray cluster, for what lies where there are no file locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from conr_ray.storage.locks import Lock

_NAMESPACE = "conr_ray"


@dataclass(frozen=True)
class ActorLocks:
    """A lock is held by whoever has made the actor of its name, which ends with its maker."""

    def __call__(self, name: str) -> Lock:
        return _ActorLock(name)


@ray.remote(num_cpus=0)
class _Held:
    """Only there."""

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
            ray.kill(self._actor)

    def acquired(self) -> bool:
        if self._actor is None:
            options = {"name": f"lock-{self._name}", "namespace": _NAMESPACE}
            try:
                actor = _Held.options(**options).remote()  # type: ignore[attr-defined]
                ray.get(actor.ready.remote())
            except (ValueError, ray.exceptions.RayActorError):
                # Someone else's has that name.
                return False
            self._actor = actor
        return True
