"""`moto_server.py ADDRESS PORT FILE`: moto's server, without spot capacity while FILE is there."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

_SHORTAGE = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>
<Message>There is no Spot capacity available that matches your request.</Message></Error></Errors>
<RequestID>0</RequestID></Response>"""


def main(address: str, port: int, shortage: Path) -> None:
    """Serve until killed."""
    # Imported here: the tests only want to know where this file is.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if shortage.exists() and environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            asked = parse_qs(body.decode(errors="replace"))
            action, market = asked.get("Action"), asked.get("InstanceMarketOptions.MarketType")
            if action == ["RunInstances"] and market == ["spot"]:
                start("500 Insufficient capacity", [("Content-Type", "text/xml")])
                return [_SHORTAGE]
        return moto(environ, start)  # type: ignore[no-any-return]

    run_simple(address, port, application, threaded=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
