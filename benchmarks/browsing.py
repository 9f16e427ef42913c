"""How long the first view of `conr_ray.browse` takes, and what memory it holds.

    python benchmarks/browsing.py --rows 100000 1000000

Made assignments of a prediction with embeddings, without pictures that can be reached; each number
in a process of its own: from a folder that was never browsed to the first page, then once more, the
page of a cluster, a merge with the page after it, and the neighbours of an image by distance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_PART, _WIDTH = 2**16, 64


def make(folder: Path, num_rows: int) -> None:
    """Write predictions."""
    rng = np.random.default_rng(0)
    (folder / "predictions").mkdir(parents=True)
    for number, start in enumerate(range(0, num_rows, _PART)):
        rows = np.arange(start, min(num_rows, start + _PART))
        flat = rng.normal(size=(len(rows), _WIDTH)).astype(np.float32)
        columns = {
            "path": [f"folder/{row:08d}.jpg" for row in rows.tolist()],
            "cluster": rng.integers(0, 50, len(rows)),
            "boundary_ratio": rng.uniform(0, 1, len(rows)).astype(np.float32),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), _WIDTH),
        }
        pq.write_table(pa.table(columns), folder / f"predictions/part-{number:06d}.parquet")
    told = {"format": 1, "run": "none", "state": "0", "what": "folder", "images": "/nowhere"}
    (folder / "prediction.json").write_text(json.dumps(told))


def memory_mib(name: str) -> float:
    """Of this process: RssAnon is what it holds itself, without files that are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status[name].split()[0]) / 1024


def browse(folder: str) -> dict[str, float]:
    """Times, in seconds, and memory."""
    began = time.perf_counter()
    from starlette.testclient import TestClient

    from conr_ray.browsing.opened import open_collection
    from conr_ray.browsing.server import Server
    from conr_ray.browsing.session import Session

    found = {"imports_s": time.perf_counter() - began}
    began = time.perf_counter()
    with Session(open_collection(folder)) as session:
        app = Server(session).app("token")
        page = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        # Pictures come after the page.
        session.thumbnails.prepare = lambda rows: None  # type: ignore[method-assign]

        def timed(figure: str, path: str, **fields: str) -> None:
            began = time.perf_counter()
            answer = page.post(path, data=fields) if fields else page.get(path)
            assert answer.status_code == 200, answer.text
            found[figure] = time.perf_counter() - began

        assert page.get("/?token=token").status_code == 200
        found["first_view_s"] = time.perf_counter() - began
        found["anonymous_mib"] = memory_mib("RssAnon")
        timed("again_s", "/")
        timed("cluster_s", "/cluster/3?page=5")
        timed("rename_s", "/edit", do="rename", cluster="3", name="three")
        from conr_ray.browsing import near

        near.euclidean(session.collection.embeddings_nd, 5, 20)
        began = time.perf_counter()
        near.euclidean(session.collection.embeddings_nd, 7, 20)
        found["nearest_s"] = time.perf_counter() - began
        found["anonymous_mib_after"] = memory_mib("RssAnon")
    return found


def main() -> None:
    """Print a row for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--browse", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.browse:
        print(json.dumps(browse(args.browse)))
        return
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as place:
            make(Path(place) / "made", num_rows)
            command = [sys.executable, __file__, "--browse", f"{place}/made"]
            environment = {**os.environ, "CONR_RAY_CACHE": f"{place}/cache"}
            done = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            figures = {name: round(value, 3) for name, value in json.loads(done.stdout).items()}
            print(f"{num_rows:,} images: {figures}", flush=True)


if __name__ == "__main__":
    main()
