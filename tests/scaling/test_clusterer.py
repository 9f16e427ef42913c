"""`Clusterer(workers=...)`: the command's figures, on a Ray of its own or of whoever calls it."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from sklearn.base import clone
from sklearn.datasets import load_digits

import conr_ray.train
from conr_ray import Clusterer, UserError
from conr_ray.engine.run_directory import RunDirectory
from tests.clusters import namespaces
from tests.clusters.namespaces import Sandbox
from tests.scaling.test_nodes import Nodes
from tests.tiny_runs import TINY, as_settings, without_times
from tests.waiting import HANG_S, until

SMALL = {**TINY, "data.limit": None, "schedule.epochs": 2, "schedule.group_start": 1}
FIELDS: dict[str, Any] = {
    name.replace(".", "__"): value for name, value in SMALL.items() if value is not None
}


@pytest.fixture
def rays_end() -> Iterator[None]:
    """No process outlives the test, however it ends."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    ray.shutdown()
    left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive


def _rows(history: Any) -> list[dict[str, Any]]:
    found = [{k: v for k, v in row.items() if v == v} for row in history.to_dict("records")]
    return without_times(found)


@pytest.mark.slow
@pytest.mark.usefixtures("rays_end")
def test_two_workers_give_the_figures_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    job = ray.get_runtime_context().get_job_id()
    words = ["--preset", "digits", *as_settings({**SMALL, "data.limit": "null"})]
    conr_ray.train.main([*words, "--workers", "2", "--storage", str(tmp_path), "--name", "command"])
    digits = load_digits()
    clusterer = Clusterer(workers=2, verbose=False, **FIELDS)
    capsys.readouterr()
    fitted = clone(clusterer).fit(digits.images, digits.target)
    assert capsys.readouterr().out == ""
    command = RunDirectory(tmp_path / "command")
    assert _rows(fitted.history_) == without_times(command.metric_rows())
    table = command.read_table("assignments.parquet")
    assert table is not None
    np.testing.assert_array_equal(fitted.labels_, table["cluster"].to_numpy())
    np.testing.assert_array_equal(fitted.boundary_ratios_, table["boundary_ratio"].to_numpy())
    np.testing.assert_array_equal(fitted.predict(digits.images), fitted.labels_)
    # The Ray of the caller is as it was.
    assert ray.is_initialized() and ray.get_runtime_context().get_job_id() == job
    with pytest.raises(UserError, match=r"^workers=33 is not between 1 and 32"):
        Clusterer(workers=33, verbose=False, **FIELDS).fit(digits.images)
    with pytest.raises(UserError, match=r"^workers=3 needs 3 x \(1 CPU\)"):
        Clusterer(workers=3, verbose=False, **FIELDS).fit(digits.images)
    with pytest.raises(UserError, match="choose another folder"):
        Clusterer(folder=command.uri, workers=2, verbose=False, **FIELDS).fit(digits.images)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("rays_end")
def test_a_ray_of_its_own_ends_with_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_digits().images[:100]
    clusterer = Clusterer(workers=1, folder=str(tmp_path / "kept"), **FIELDS)
    copy = pickle.loads(pickle.dumps(clusterer))
    assert copy.get_params() == clusterer.get_params() and copy.workers == 1
    for epochs in (2, 3):
        # A kept run goes on.
        copy.set_params(schedule__epochs=epochs).fit(images)
        assert not ray.is_initialized()
        assert f"epoch {epochs}/{epochs}" in capsys.readouterr().out
        assert len(copy.labels_) == 100 and len(copy.history_) == epochs


STOPPED = """
import sys
from sklearn.datasets import load_digits
from conr_ray import Clusterer
Clusterer(workers=1, folder=sys.argv[1], verbose=False, checkpoint__every=1000, **{fields}).fit(
    load_digits().images[:100]
)
"""


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_ends_the_workers_and_the_next_fit_goes_on(tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "checkpoint__every"}
    fields["schedule__epochs"] = 600
    run = RunDirectory(tmp_path / "kept")
    script = STOPPED.format(fields=fields)
    command = [sys.executable, "-c", script, run.uri]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: len(run.metric_rows()) > 3, pause_s=0.1)
    # It takes a second until this process has heard that the worker can be stopped.
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=HANG_S)[1]
    assert process.returncode != 0
    assert re.search(r"KeyboardInterrupt: stopped in epoch \d+ after step \d+", told)
    [(epoch, _)] = run.checkpoints()
    assert 3 < epoch < 600
    before = run.metric_rows()[:epoch]
    subprocess.run(command, check=True, timeout=HANG_S)
    assert len(rows := run.metric_rows()) == 600
    assert rows[:epoch] == before


ON_A_CLUSTER = """
import sys
from sklearn.datasets import load_digits
from conr_ray import Clusterer
on_ray = {{"workers": 2, "address": "auto", "folder": sys.argv[1]}}
labels = Clusterer(verbose=False, **on_ray, **{fields}).fit_predict(load_digits().images[:100])
print(len(labels), "labels")
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
def test_on_a_cluster_its_nodes_train_and_must_see_the_folder(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ON_A_CLUSTER.format(fields=FIELDS))
    with Sandbox(tmp_path) as sandbox:
        nodes = Nodes(sandbox)
        head, *_ = [nodes.add(num_cpus) for num_cpus in (0, 1, 1)]
        # Each host has a /dev/shm of its own.
        refused = head.run(f"python {tmp_path}/script.py /dev/shm/kept")
        assert refused.returncode == 1
        assert re.search(
            r"NotShared: folder: node 10\.77\.0\.1\d, 10\.77\.0\.1\d does not see /dev/shm/kept: "
            r"give folder='s3://bucket/folder', or one that all nodes mount$",
            refused.stderr.strip(),
        )
        done = head.run(f"python {tmp_path}/script.py {tmp_path}/kept")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip().endswith("100 labels")
    run = RunDirectory(tmp_path / "kept")
    assert len(run.metric_rows()) == 2 and run.read_table("samples.parquet") is not None


def test_an_address_that_cannot_be_joined_is_a_line() -> None:
    images = load_digits().images[:100]
    with pytest.raises(UserError, match=r"^address=ray://.*: run it on one with address='auto'$"):
        Clusterer(address="ray://127.0.0.1:9", verbose=False, **FIELDS).fit(images)
    with pytest.raises(UserError, match=r"^address=127\.0\.0\.1:9: no Ray cluster there"):
        Clusterer(2, workers=2, address="127.0.0.1:9", verbose=False, **FIELDS).fit(images)
    assert not ray.is_initialized() and "RAY_ADDRESS" not in os.environ
