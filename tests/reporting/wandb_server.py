"""A server on this machine that answers like W&B's, as far as views and runs go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}


class WandbServer(ThreadingHTTPServer):
    """Knows one project, me/digits, and its runs.

    Attributes:
        key_is_known: answers 401 to everything where not.
        is_broken: answers 500 to everything.
        runs: config of each run of the project, by id.
        views: variables of each view that was saved.
        questions: operations that were asked, as the first line of each.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.key_is_known = True
        self.is_broken = False
        self.runs: dict[str, Any] = {}
        self.views: list[dict[str, Any]] = []
        self.questions: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> tuple[int, Any]:
        """Status and body for a GraphQL query."""
        self.questions.append(query.strip().splitlines()[0])
        if self.is_broken:
            return 500, {"errors": [{"message": "down"}]}
        if not self.key_is_known:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if "UpsertView2" in query:
            return self._save(variables)
        if "query Run(" in query:
            return 200, {"data": {"project": self._project(variables)}}
        return 200, {"data": {"viewer": {**VIEWER, "teams": {"edges": []}}}}

    def _save(self, variables: dict[str, Any]) -> tuple[int, Any]:
        if (variables["entityName"], variables["projectName"]) != ("me", "digits"):
            message = f"project {variables['entityName']}/{variables['projectName']} not found"
            errors = [{"message": message, "path": ["upsertView"]}]
            return 200, {"data": {"upsertView": None}, "errors": errors}
        self.views.append(variables)
        view = {"id": "view", "name": variables["name"]}
        return 200, {"data": {"upsertView": {"view": view, "inserted": True}}}

    def _project(self, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        if (variables["entity"], variables["project"]) != ("me", "digits"):
            return None
        if name not in self.runs:
            return {"internalId": "1", "run": None}
        stored = {key: {"value": value} for key, value in self.runs[name].items()}
        run = {"id": name, "name": name, "displayName": name, "state": "finished", "tags": []}
        run |= {"config": json.dumps(stored), "summaryMetrics": "{}", "systemMetrics": "{}"}
        run |= {"group": name, "jobType": "search", "commit": None, "readOnly": False}
        run |= {"projectId": "1", "createdAt": "2026-11-24T00:00:00Z", "heartbeatAt": None}
        run |= {"user": {"name": "me", "username": "me"}, "historyKeys": None, "sweepName": None}
        return {"internalId": "1", "run": {**run, "description": "", "notes": ""}}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":
            return self._send(200, {})
        asked = json.loads(body)
        return self._send(*self.server.answer(asked["query"], asked.get("variables") or {}))

    def do_GET(self) -> None:
        self._send(200, {})

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def wandb_server(port: int = 0) -> Iterator[WandbServer]:
    """A server that answers while the block runs, at any port by default."""
    server = WandbServer(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
