"""Prediction on two nodes, hosts of a sandbox: both take part, and the rows are those of one."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.clusters import namespaces
from tests.clusters.namespaces import Sandbox
from tests.prediction.conftest import NUM_IMAGES, predict, rows_of
from tests.scaling.test_nodes import Nodes

# The nodes of the tasks that have placed samples, one for each.
TOOK_PART = """
import json, ray
from ray.util.state import list_tasks
ray.init("auto", log_to_driver=False, logging_level="error")
tasks = list_tasks(filters=[("state", "=", "FINISHED")], limit=10_000)
print(json.dumps([task.node_id for task in tasks if task.name.endswith(".submit")]))
"""
# Each image so many times: pieces of work for both.
COPIES = 200


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
def test_two_nodes_share_the_work_and_write_the_rows_of_one_process(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, images = folder_run[0], tmp_path / "images"
    for copy in range(COPIES):
        for file in folder_run[1].rglob("*.png"):
            (images / str(copy)).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, images / str(copy) / file.name)
    words = ["python", "-m", "conr_ray.predict", "--run", run, "--images", str(images)]
    words += ["--address", "auto", "--workers", "2", "--cpus-per-worker", "1", "--embeddings"]
    with Sandbox(tmp_path) as sandbox:
        nodes = Nodes(sandbox)
        head, *_ = [nodes.add(num_cpus) for num_cpus in (0, 1, 1)]
        done = head.run(shlex.join([*words, "--out", str(tmp_path / "there")]))
        assert done.returncode == 0, done.stdout + done.stderr
        (tmp_path / "ask.py").write_text(TOOK_PART)
        told = head.run(f"python {tmp_path}/ask.py")
        assert told.returncode == 0, told.stdout + told.stderr
        nodes_of_tasks = json.loads(told.stdout.splitlines()[-1])
    shares = {node: nodes_of_tasks.count(node) for node in set(nodes_of_tasks)}
    print(f"batches placed by each node: {shares}")
    assert len(shares) == 2 and min(shares.values()) > 5
    predict(run, str(images), tmp_path / "here", "--embeddings")
    there, here = rows_of(tmp_path / "there"), rows_of(tmp_path / "here")
    assert len(there) == COPIES * NUM_IMAGES
    for name in ("path", "cluster", "confident"):
        assert [row[name] for row in there] == [row[name] for row in here]
    found, wanted = (np.array([row["embedding"] for row in rows]) for rows in (there, here))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
