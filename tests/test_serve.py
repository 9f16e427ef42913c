"""The example server, started for real: several clients at once, and bad uploads."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conr_ray import TrainedRun
from conr_ray.data.store import open_data
from tests.tiny_runs import run_here, tiny_config
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]
MOST_BYTES = 100_000
# A Ray of its own on loopback, which ends with its standard input.
_SERVER = """
import sys
import ray
from ray import serve
from examples.serve import app
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app)
print("serving", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, TrainedRun, Any]]:
    """Address of a server, its run, and the run's images."""
    config = tiny_config(schedule__epochs=2, schedule__group_start=1)
    run_here(config, tmp_path / "run")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="cr", dir="/tmp")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port), folder],
        env={
            **os.environ,
            "CONR_RAY_RUN": str(tmp_path / "run"),
            "SERVE_MOST_BYTES": str(MOST_BYTES),
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None and server.stdin is not None
        assert any(line == "serving\n" for line in server.stdout)
        yield f"http://127.0.0.1:{port}", TrainedRun.load(tmp_path / "run"), open_data(config.data)
    finally:
        server.communicate("", timeout=HANG_S)
        shutil.rmtree(folder, ignore_errors=True)


def _ask(url: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_the_example_answers_several_clients_and_refuses_what_is_no_image(
    served: tuple[str, TrainedRun, Any],
) -> None:
    url, run, data = served
    assert _ask(f"{url}/health") == (
        200,
        {"run": _ask(f"{url}/health")[1]["run"], "num_clusters": 10},
    )
    uploads = []
    for image in data.rows[:40]:
        buffer = BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        uploads.append(buffer.getvalue())
    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda upload: _ask(url, upload), uploads))
    assert time.perf_counter() - begin < HANG_S
    placement = run.place(data.rows[:40])
    assert [status for status, _ in answers] == [200] * 40
    told = [answer for _, answer in answers]
    assert [answer["cluster"] for answer in told] == placement.clusters_n.tolist()
    ratios = [answer["boundary_ratio"] for answer in told]
    np.testing.assert_allclose(ratios, placement.boundary_ratios_n, rtol=1e-3)
    assert run.confident_ratio is not None
    assert [answer["confident"] for answer in told] == [r <= run.confident_ratio for r in ratios]
    assert "embedding" not in told[0]
    _, answer = _ask(f"{url}/?embed=1", uploads[0])
    np.testing.assert_allclose(answer["embedding"], placement.embeddings_nd[0], atol=1e-4)

    for broken in (b"", b"GIF89a", uploads[0][: len(uploads[0]) // 2], b"\0" * 1000):
        status, answer = _ask(url, broken)
        assert status == 400 and "\n" not in answer["error"]
        assert answer["error"].startswith("the body is no image: ")
    assert _ask(url, b"\0" * (MOST_BYTES + 1)) == (
        413,
        {"error": f"give at most {MOST_BYTES} bytes"},
    )
    assert _ask(url, uploads[0])[0] == 200
