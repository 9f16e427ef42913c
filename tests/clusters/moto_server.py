"""`moto_server.py ADDRESS PORT FILE`: moto's server, with as many instances as FILE says.

FILE is `{"spot": n, "on_demand": n}`, those that can still be started; a market that it leaves out,
or all where there is no file, has no limit. Of the instances that a call asks for as many start as
there are, as on EC2; moto alone starts the fewest that the call permits.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_NO_CAPACITY = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>
<Message>There is no capacity available that matches your request.</Message></Error></Errors>
<RequestID>0</RequestID></Response>"""


def application(capacity: Path) -> Application:
    """The server as a WSGI application; `capacity` is FILE."""
    # Imported here: `ec2.py` only wants to know where this file is.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] == "/":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            asked = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
            if asked.get("Action") == ["RunInstances"]:
                [market] = asked.get("InstanceMarketOptions.MarketType", ["on_demand"])
                left = json.loads(capacity.read_text()) if capacity.exists() else {}
                count = int(asked["MaxCount"][0])
                if market in left:
                    count = min(count, left[market])
                    left[market] -= count
                    capacity.write_text(json.dumps(left))
                if count < int(asked["MinCount"][0]):
                    start("500 Insufficient capacity", [("Content-Type", "text/xml")])
                    return [_NO_CAPACITY]
                asked["MinCount"] = asked["MaxCount"] = [str(count)]
                body = urlencode(asked, doseq=True).encode()
                environ["CONTENT_LENGTH"] = str(len(body))
            environ["wsgi.input"] = io.BytesIO(body)
        return moto(environ, start)  # type: ignore[no-any-return]

    return answer


def main(address: str, port: int, capacity: Path) -> None:
    """Serve until killed."""
    from werkzeug.serving import run_simple

    run_simple(address, port, application(capacity), threaded=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
