"""A TCP proxy in front of an object store, which drops connections and is away for a while."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from contextlib import suppress

_CHUNK = 65536
# Ends a connection at once, unsent bytes and all.
_RESET = struct.pack("ii", 1, 0)


class DroppingProxy:
    """Forwards to `port` of this machine; a context manager.

    Args:
        port: of the store.
        every: of the chunks of answers, each so many-th is cut in half and its connection reset.
        away_at: numbers of chunks at which all connections are refused for `away_s` seconds.

    Attributes:
        num_dropped: connections that were reset.
        port: where it listens.
    """

    def __init__(
        self, port: int, every: int, away_at: tuple[int, ...] = (), away_s: float = 0.0
    ) -> None:
        self._store, self._every = port, every
        self._away_at, self._away_s, self._away_until = away_at, away_s, 0.0
        self._chunks = itertools.count(1)
        self.num_dropped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> DroppingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread that waits for the next connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if time.monotonic() < self._away_until:
                self._drop(client)
                continue
            store = socket.create_connection(("127.0.0.1", self._store))
            for pump in (self._ask, self._answer):
                threading.Thread(target=pump, args=(client, store), daemon=True).start()

    def _ask(self, client: socket.socket, store: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                store.sendall(data)
        with suppress(OSError):
            store.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, store: socket.socket) -> None:
        with suppress(OSError), client, store:
            while data := store.recv(_CHUNK):
                number = next(self._chunks)
                if number in self._away_at:
                    self._away_until = time.monotonic() + self._away_s
                if number % self._every == 0 or time.monotonic() < self._away_until:
                    client.sendall(data[: len(data) // 2])
                    self._drop(client)
                    return
                client.sendall(data)

    def _drop(self, client: socket.socket) -> None:
        self.num_dropped += 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # A thread that still waits for the client would keep it open. No end is sent, as it would
        # be with SHUT_RDWR: the client sees a reset.
        with suppress(OSError):
            client.shutdown(socket.SHUT_RD)
        client.close()
