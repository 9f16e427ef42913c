"""A worker's side of the watch: it tells where it is, from a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from conr_ray.method.collectives import rank
from conr_ray.method.phases import place
from conr_ray.scaling.pulse import Beat


@contextmanager
def beating(pulse: Any, every_s: float) -> Iterator[None]:
    """Send beats of this worker to `pulse` while in this context."""
    own, node_id = rank(), ray.get_runtime_context().get_node_id()
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(every_s):
            beat = Beat(own, address, node_id, os.getpid(), place.phases, place.phase)
            try:
                pulse.beat.remote(beat)
            except Exception:
                return  # The actor is gone, and nobody watches any more.

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
