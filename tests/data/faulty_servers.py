"""A web server and an object store on this machine that misbehave as told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"""


class WebFaults:
    """What a server does with the file of each name.

    Attributes:
        fail_first: how many requests are answered by status 500 before one is not.
        cut_first: of how many answers half the bytes are missing.
        silent: what never answers.
        moved: what is elsewhere.
        refused: status of others.
        asked: requests so far.
    """

    def __init__(self) -> None:
        self.fail_first: dict[str, int] = {}
        self.cut_first: dict[str, int] = {}
        self.silent: set[str] = set()
        self.moved: dict[str, str] = {}
        self.refused: dict[str, int] = {}
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, faults: WebFaults, **kwargs: Any) -> None:
        self._faults = faults
        super().__init__(*args, **kwargs)

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        name, faults = unquote(self.path.lstrip("/")), self._faults
        faults.asked[name] += 1
        if name in faults.silent:
            faults.over.wait(30)
            self.close_connection = True
        elif name in faults.moved:
            self.send_response(302)
            self.send_header("Location", faults.moved[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in faults.refused:
            self.send_error(faults.refused[name])
        elif faults.asked[name] <= faults.fail_first.get(name, 0):
            self.send_error(500)
        elif faults.asked[name] <= faults.cut_first.get(name, 0):
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            super().do_GET()


@contextmanager
def web_server(folder: Path, faults: WebFaults | None = None) -> Iterator[str]:
    """The URL of a server of a folder, which lists folders as pages of links."""
    faults = faults or WebFaults()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Handler, directory=str(folder), faults=faults)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    faults.over.set()
    server.shutdown()
    server.server_close()


class StoreFaults:
    """What an object store does wrong.

    Attributes:
        cut: keys of objects that come without their end.
        silent_once: keys of objects whose first answer never comes.
        slow_s: before each answer.
        expires_after: requests after which the credentials have expired.
        asked: requests so far.
        most_at_once: that were answered at the same time.
    """

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.silent_once: set[str] = set()
        self.ended = threading.Event()
        self.slow_s = 0.0
        self.expires_after: float = float("inf")
        self.asked = self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    def over(self, store: Application) -> Application:
        """The store with its faults."""

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            with self._lock:
                self.asked += 1
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                expired = self.asked > self.expires_after
            try:
                time.sleep(self.slow_s)
                if expired:
                    size = ("Content-Length", str(len(_EXPIRED)))
                    start("400 Bad Request", [("Content-Type", "application/xml"), size])
                    return [] if environ["REQUEST_METHOD"] == "HEAD" else [_EXPIRED]
                key = environ["PATH_INFO"].lstrip("/").partition("/")[2]
                if environ["REQUEST_METHOD"] == "GET" and key in self.silent_once:
                    self.silent_once.discard(key)
                    self.ended.wait(30)
                if environ["REQUEST_METHOD"] == "GET" and key in self.cut:
                    return self._half(store, environ, start)
                return store(environ, start)
            finally:
                with self._lock:
                    self._now -= 1

        return answer

    def _half(
        self, store: Application, environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        told: list[Any] = []
        data = b"".join(store(environ, lambda *args: told.extend(args)))
        data = data[: len(data) // 2]
        others = [(name, value) for name, value in told[1] if name.lower() != "content-length"]
        start(told[0], [*others, ("Content-Length", str(len(data)))])
        return [data]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object, **__: object) -> None: ...


@contextmanager
def store_server(faults: StoreFaults) -> Iterator[str]:
    """The address of moto's S3 with faults."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)
    server: BaseWSGIServer = make_server(
        "127.0.0.1", 0, faults.over(moto), threaded=True, request_handler=_Quiet
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    faults.ended.set()
    server.shutdown()
    server.server_close()
