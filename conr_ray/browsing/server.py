"""The server of a browser: on this machine alone, for who has its token."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from conr_ray.browsing.pages import FOUND_SHOWN, Pages, static_file
from conr_ray.browsing.session import Session
from conr_ray.edits.log import JUNK
from conr_ray.errors import UserError

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_MOST_BYTES = 64 * 2**20
_MOST_SAID = 100
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TYPES = {"css": "text/css", "js": "text/javascript"}


class Guard:
    """Lets in who is on this machine, asks for it by name, and has the token.

    The first request has the token in its address, later ones in a cookie. The name keeps pages of
    others out whose names have been made to lead here; the origin keeps out their forms.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        """Guard `app`."""
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with 403."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        refused = self._refused(request)
        if refused is not None:
            answer: ASGIApp = PlainTextResponse(f"refused: {refused}\n", 403)
        elif "token" in request.query_params:
            found = RedirectResponse(request.url.path, 303)
            found.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            answer = found
        else:
            answer = self._app

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                usual = {"cache-control": "no-store", **_HEADERS}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (n.encode(), v.encode())
                        for n, v in usual.items()
                        if n.encode() not in there
                    ),
                ]
            await send(message)

        await answer(scope, receive, with_headers)

    def _refused(self, request: Request) -> str | None:
        """Why a request is refused; None if it is not."""
        if request.client is None or not _is_here(request.client.host):
            return "this page is for its own machine alone"
        host = request.headers.get("host", "")
        if not _is_name_of_here(host):
            return "it is called 127.0.0.1 or localhost here"
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "the request comes from another page"
        given = request.query_params.get("token") or request.cookies.get(self._cookie, "")
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return "open the address that the command has printed, with its token"
        return None


def _is_here(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


def _is_name_of_here(host: str) -> bool:
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    return host in _HOSTS or (name in _HOSTS and port.isdecimal())


class Server:
    """Answers requests for a session's pages."""

    def __init__(self, session: Session) -> None:
        """Nothing is asked yet."""
        self.session, self.pages = session, Pages(session)
        self._said: dict[str, tuple[str, bool]] = {}

    def app(self, token: str, cookie: str = "conr_ray") -> ASGIApp:
        """The guarded application."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", self._clusters, methods=get),
            Route("/cluster/{number:path}", self._cluster, methods=get),
            Route("/image/{row:int}", self._image, methods=get),
            Route("/thumb/{key}/{row:int}", self._thumb, methods=get),
            Route("/found/{kind}", self._found, methods=get),
            Route("/map", self._map, methods=get),
            Route("/points", self._points, methods=get),
            Route("/search", self._search_form, methods=get),
            Route("/search", self._search, methods=post),
            Route("/chosen", self._chosen, methods=post),
            Route("/edit", self._edit, methods=post),
            Route("/static/{name}", _static, methods=get),
        ]
        app = Starlette(routes=routes, exception_handlers={UserError: _told_as_page})
        return Guard(app, token, cookie)

    def _heard(self, request: Request) -> tuple[str, bool]:
        return self._said.get(request.query_params.get("said", ""), ("", False))

    def _shown(self, html: str, rows: list[int]) -> Response:
        """A page; its pictures are made meanwhile, all at once."""
        return HTMLResponse(html, background=BackgroundTask(self.session.thumbnails.prepare, rows))

    def _clusters(self, request: Request) -> Response:
        return self._shown(*self.pages.clusters(_page(request), self._heard(request)))

    def _cluster(self, request: Request) -> Response:
        number = _number(request.path_params["number"], "cluster")
        least = request.query_params.get("order") == "least"
        found = self.pages.cluster(number, _page(request), least, self._heard(request))
        return self._shown(*found)

    def _found(self, request: Request) -> Response:
        kind = request.path_params["kind"].replace("-", " ")
        return self._shown(*self.pages.found(kind, _page(request), self._heard(request)))

    def _image(self, request: Request) -> Response:
        return self._shown(*self.pages.image(request.path_params["row"], self._heard(request)))

    def _thumb(self, request: Request) -> Response:
        row = self.session.checked_row(request.path_params["row"])
        data = self.session.thumbnails.get(row)
        if data is None:
            # Shown as such, and asked for again when the page is.
            return Response(_NO_PICTURE, media_type="image/svg+xml")
        kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
        kept = {"cache-control": "private, max-age=86400"}
        return Response(data, media_type=f"image/{kind}", headers=kept)

    def _map(self, request: Request) -> Response:
        return HTMLResponse(self.pages.map(self._heard(request)))

    def _points(self, request: Request) -> Response:
        rows, places = self.session.positions()
        clusters = [self.session.cluster_of(row) for row in rows.tolist()]
        x, y = places.T.round(3).tolist()
        return JSONResponse({"row": rows.tolist(), "x": x, "y": y, "cluster": clusters})

    def _search_form(self, request: Request) -> Response:
        return HTMLResponse(self.pages.search(self._heard(request)))

    async def _search(self, request: Request) -> Response:
        content = await _body(request)

        def found() -> Response:
            try:
                rows, cluster = self.session.search(content, FOUND_SHOWN)
            except UserError as error:
                return HTMLResponse(self.pages.search((str(error), True)), 400)
            said = f"{len(rows)} images found"
            html = self.pages.search((said, False), rows.tolist(), cluster)
            return self._shown(html, rows.tolist())

        return await run_in_threadpool(found)

    async def _chosen(self, request: Request) -> Response:
        fields = parse_qs((await _body(request)).decode(errors="replace"))
        rows = [self.session.checked_row(_number(row, "row")) for row in fields.get("row", [])]
        return await run_in_threadpool(lambda: HTMLResponse(self.pages.chosen(rows)))

    async def _edit(self, request: Request) -> Response:
        body = (await _body(request)).decode(errors="replace")
        fields = parse_qs(body, keep_blank_values=True)
        return await run_in_threadpool(self._edited, fields)

    def _edited(self, fields: dict[str, list[str]]) -> Response:
        try:
            said = self._done(fields), False
        except UserError as error:
            said = str(error), True
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        key = secrets.token_hex(4)
        self._said[key] = said
        return RedirectResponse(self._back(fields.get("back", ["/"])[0], key), 303)

    def _back(self, place: str, key: str) -> str:
        """The page that a form was on, or the first if that is gone."""
        parts = urlsplit(place)
        gone = parts.scheme or parts.netloc or not place.startswith("/")
        if parts.path.startswith("/cluster/"):
            number = parts.path.rpartition("/")[2]
            gone = gone or number not in {str(one.number) for one in self.session.clusters}
        if gone:
            return f"/?said={key}"
        query = [(n, v) for n, v in parse_qsl(parts.query) if n in ("page", "order")]
        return f"{parts.path}?" + "".join(f"{n}={_plain(v)}&" for n, v in query) + f"said={key}"

    def _done(self, fields: dict[str, list[str]]) -> str:
        """Do what a form asks for; what was done, in a line.

        Raises:
            UserError: it cannot be done.
        """
        session = self.session
        clusters = [_number(one, "cluster") for one in fields.get("cluster", [])]
        rows = [_number(one, "row") for one in fields.get("row", [])]
        what = fields.get("do", [""])[-1]
        if what in ("rename", "split", "junk_cluster") and len(clusters) != 1:
            raise UserError(f"{what}: {len(clusters)} clusters are chosen: choose one")
        actions: dict[str, Callable[[], str]] = {
            "merge": lambda: self._merged(fields, clusters),
            "rename": lambda: session.rename(clusters[0], fields.get("name", [""])[0]),
            "split": lambda: session.split(clusters[0]),
            "junk_cluster": lambda: session.junk_cluster(clusters[0]),
            "junk_found": lambda: session.junk_found(fields.get("kind", [""])[0]),
            "junk": lambda: session.move(rows, JUNK),
            "move": lambda: session.move(rows, _into(fields.get("into", ["new"])[0])),
            "undo": session.undo,
        }
        if what not in actions:
            raise UserError(f"do={what}: no such step: go back")
        return actions[what]()

    def _merged(self, fields: dict[str, list[str]], clusters: list[int]) -> str:
        if "merge_into" not in fields:
            return self.session.merge(clusters)
        into = _number(fields["merge_into"][0], "cluster")
        return self.session.merge([*clusters, into], into)


_NO_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><rect width="96" height="96" '
    'fill="#8884"/><text x="48" y="52" font-size="12" text-anchor="middle" fill="#777" '
    'font-family="sans-serif">no picture</text></svg>'
)


def _plain(value: str) -> str:
    return "".join(c for c in value if c.isascii() and c.isalnum())


def _into(text: str) -> int | None:
    return None if text == "new" else _number(text, "cluster")


def _number(text: str, what: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > 18:
        raise UserError(f"{what}={text[:40]}: not a number: go back")
    return int(text)


def _page(request: Request) -> int:
    text = request.query_params.get("page", "1")
    return int(text) if text.isdecimal() and len(text) < 10 else 1


async def _body(request: Request) -> bytes:
    """The body of a request; a UserError if it is longer than `_MOST_BYTES`."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > _MOST_BYTES:
            raise UserError(f"more than {_MOST_BYTES >> 20} MiB: choose a smaller file")
    return bytes(found)


async def _told_as_page(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404 if request.method == "GET" else 400)


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    text = static_file(name)
    if text is None:
        return PlainTextResponse("no such file\n", 404)
    return Response(text, media_type=_TYPES[name.rpartition(".")[2]])


def listening(port: int) -> socket.socket:
    """A socket on the loopback address; port 0 takes a free one.

    Raises:
        UserError: the port is taken or not allowed.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--port {port}: cannot be had ({reason}): choose another") from None
    found.listen(64)
    return found


def serve(session: Session, opened: socket.socket, token: str) -> None:
    """Serve until the process is asked to end."""
    import uvicorn

    port = opened.getsockname()[1]
    app = Server(session).app(token, f"conr_ray_{port}")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False, ws="none"
    )
    uvicorn.Server(config).run(sockets=[opened])
