"""Small objects of a store that takes a while for each answer: all at once, and one by one.

    python benchmarks/object_store.py --objects 10000 --latency-ms 20

A server of S3's protocol on this machine, a process of its own, answers after so many milliseconds.
Prints images a second as training reads them, with the requests in flight at most, and what one
reader without parallel requests would reach.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_LISTED = 1000


class Store(BaseHTTPRequestHandler):
    """Objects `bucket/set/0000000.jpg` and so on, all of the same bytes."""

    protocol_version = "HTTP/1.1"
    data, count, latency_s = b"", 0, 0.0
    now, most, lock = 0, 0, threading.Lock()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """The size of an object."""
        self._answer()

    def do_GET(self) -> None:
        """An object, or a part of the list of all."""
        self._answer()

    def _answer(self) -> None:
        with self.lock:
            Store.now += 1
            Store.most = max(Store.most, Store.now)
        time.sleep(self.latency_s)
        path, _, query = self.path.partition("?")
        is_object = path.endswith(".jpg")
        body = self.data if is_object else self._list(query)
        found = is_object or self.command == "GET"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body) if found else 0))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        with self.lock:
            Store.now -= 1

    def _list(self, query: str) -> bytes:
        words = dict(word.partition("=")[::2] for word in query.split("&"))
        first = int(words.get("continuation-token", "0"))
        last = min(self.count, first + min(_LISTED, int(words.get("max-keys", _LISTED))))
        objects = "".join(
            f"<Contents><Key>set/{number:07d}.jpg</Key><Size>{len(self.data)}</Size>"
            "<LastModified>2026-11-30T00:00:00.000Z</LastModified></Contents>"
            for number in range(first, last)
        )
        more = "true" if last < self.count else "false"
        token = f"<NextContinuationToken>{last}</NextContinuationToken>"
        return (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{more}</IsTruncated>'
            f"{token if more == 'true' else ''}<KeyCount>{last - first}</KeyCount>{objects}"
            "</ListBucketResult>"
        ).encode()


def serve(pipe: Connection, count: int, latency_s: float) -> None:
    """Serve until the other end asks for the most requests in flight."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    Store.data, Store.count, Store.latency_s = buffer.getvalue(), count, latency_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    pipe.recv()
    pipe.send(Store.most)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    args = parser.parse_args()
    here, there = multiprocessing.Pipe()
    latency_s = args.latency_ms / 1000
    server: Any = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, args.objects, latency_s), daemon=True
    )
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{here.recv()}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    from conr_ray.config import DataConfig
    from conr_ray.data.store import open_data

    with tempfile.TemporaryDirectory() as cache:
        begun = time.perf_counter()
        config = DataConfig(source="auto", path="s3://bucket/set")
        assert open_data(config, Path(cache)).num_rows == args.objects
        all_s = time.perf_counter() - begun
    here.send("most")
    most = here.recv()
    server.terminate()
    # Each asks for the size and for the content.
    alone = 1 / (2 * latency_s)
    rate = args.objects / all_s
    print(
        f"{args.objects:,} objects, {args.latency_ms:g} ms an answer: {rate:,.0f} images/s in "
        f"{all_s:.1f} s, at most {most} requests at a time; one by one at most {alone:,.0f}"
    )


if __name__ == "__main__":
    main()
