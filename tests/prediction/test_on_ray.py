"""Prediction by Ray Data: the rows of one process, by actors that share the work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import conr_ray.recluster
from tests.prediction.conftest import digits, encoded, parquet, predict, rows_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_actors_of_ray_write_the_rows_of_one_process_and_the_errors(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    images: list[bytes] = [encoded(pixels) for pixels in digits()]
    images[77] = b"no picture"
    file = parquet(tmp_path / "images.parquet", images)
    run, clusters = f"{tmp_path}/run", ("--clusters", "4")
    shutil.copytree(folder_run[0], run)
    conr_ray.recluster.main(["--run", run, *clusters])
    words = ["--run", run, "--images", file, "--out", str(tmp_path / "ray"), *clusters]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "conr_ray.predict", *words, "--workers", "2"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 1
    # Nothing of what Ray says.
    assert [line for line in done.stdout.splitlines(keepends=True) if "/120 " not in line] == [
        "data: 120 images\n",
        f"119 images in {len({row['cluster'] for row in rows_of(tmp_path / 'ray')})} clusters, "
        f"{sum(row['confident'] for row in rows_of(tmp_path / 'ray')) / 119:.1%} confident, "
        f"1 unreadable: {tmp_path}/ray\n",
    ]
    # Ray's core says of each pool of actors what its restarts depend on; nothing silences it.
    *said, last = done.stderr.splitlines(keepends=True)
    assert all("constructor arguments in the object store and max_restarts" in one for one in said)
    assert last == (
        f"error: 1 of 120 images could not be read (the first: unknown image format): see "
        f"{tmp_path}/ray/errors.parquet; the same command tries them again\n"
    )
    with pytest.raises(RuntimeError, match="1 of 120 images"):
        predict(run, file, tmp_path / "here", *clusters)
    assert {row["cluster"] for row in rows_of(tmp_path / "ray")} <= set(range(4))
    there, here = rows_of(tmp_path / "ray"), rows_of(tmp_path / "here")
    for name in ("row", "cluster"):
        assert [row[name] for row in there] == [row[name] for row in here]
    errors = pq.read_table(tmp_path / "ray/errors.parquet").to_pylist()
    assert errors == [{"row": 77, "reason": "unknown image format"}]
    # What is there is not done again.
    with pytest.raises(RuntimeError, match="1 of 120 images"):
        predict(run, file, tmp_path / "ray", *clusters)
    assert rows_of(tmp_path / "ray") == there
