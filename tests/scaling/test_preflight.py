"""What a check says of the storage and the GPUs of a node, here of one on this machine."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import boto3
import pytest
import ray
import torch
from moto.core import set_initial_no_auth_action_count
from ray.cluster_utils import Cluster

from conr_ray.command_line import folder_option
from conr_ray.errors import UserError
from conr_ray.scaling import shared_storage
from conr_ray.scaling.nodes import alive_nodes
from conr_ray.scaling.preflight import preflight
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.shared_storage import check_storage
from conr_ray.storage.files import Folder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_cluster_left() -> Iterator[None]:
    yield
    ray.shutdown()


def start_node(num_gpus: int = 0) -> None:
    """A Ray of one node, which has the environment of this moment."""
    ray.init(address="local", num_cpus=2, num_gpus=num_gpus, include_dashboard=False)


# GPUs


def gpus(folder: Path) -> tuple[bool, str]:
    """Whether what a check finds of them is well, and what it is."""
    [found] = [f for f in preflight(Folder(folder), WorkerResources()) if f.subject == "GPUs"]
    return found.ok, found.detail


@ray.remote(num_cpus=0)
class Trial:
    def started(self) -> bool:
        return True


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs of its own")
def test_gpus_in_use_are_not_waited_for(tmp_path: Path) -> None:
    # The node says that it has two; there are none.
    start_node(num_gpus=2)
    trial = Trial.options(num_gpus=2).remote()
    assert ray.get(trial.started.remote())
    began = time.monotonic()
    ok, detail = gpus(tmp_path)
    assert ok
    assert re.fullmatch(r"node \S+: 2 of 2 in use", detail)
    assert time.monotonic() - began < 40
    # What has just ended gives its GPUs back.
    ray.kill(trial)
    ok, detail = gpus(tmp_path)
    assert not ok
    assert detail.endswith("offers 2 GPUs, torch sees 0: check its driver")
    # Those that nobody has are looked at.
    trial = Trial.options(num_gpus=0.5).remote()
    assert ray.get(trial.started.remote())
    ok, detail = gpus(tmp_path)
    assert not ok
    assert detail.endswith("offers 1 GPUs, torch sees 0: check its driver")


# Storage


def files(bucket: str) -> list[str]:
    """Names of all that is in a bucket, but for the marks of folders that pyarrow leaves."""
    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    names = [item["Key"] for item in found.get("Contents", [])]
    return [name for name in names if not name.endswith("/")]


def new_user(actions: Sequence[str]) -> dict[str, str]:
    """The keys of one who may do so much."""
    iam, name = boto3.client("iam"), f"user-{secrets.token_hex(4)}"
    iam.create_user(UserName=name)
    may = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    iam.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }


def told_of_storage(uri: str, keys_of_node: dict[str, str], keys: dict[str, str]) -> list[str]:
    """What is told for either option where a node has keys of its own; nothing where all is well.

    For a process of its own: Arrow's threads are in the network in which they were started, which
    in this one may have been a sandbox's.
    """
    os.environ.update(keys_of_node)
    start_node()
    os.environ.update(keys)
    told = []
    for option in ("--storage", "--trunks"):
        try:
            with folder_option(option):
                check_storage(Folder(uri), more_to_come=False)
        except UserError as error:
            told.append(str(error))
    ray.shutdown()
    return told


@pytest.mark.parametrize(
    ("actions", "refused"),
    [
        pytest.param(["s3:*"], None, marks=pytest.mark.long),
        (["s3:GetObject", "s3:ListBucket"], "CreateMultipartUpload"),
        pytest.param(["ec2:*"], "HeadObject", marks=pytest.mark.long),
    ],
    ids=["all", "read", "none"],
)
def test_what_a_node_may_not_do_in_a_bucket_is_told(
    s3_bucket: str, actions: list[str], refused: str | None
) -> None:
    uri = f"{s3_bucket}/runs"

    @set_initial_no_auth_action_count(0)
    def told(keys_of_node: dict[str, str], keys: dict[str, str]) -> list[str]:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(told_of_storage, uri, keys_of_node, keys).result(120)

    found = told(new_user(actions), new_user(["s3:*"]))
    assert len(found) == (2 if refused else 0), found
    for option, message in zip(("--storage", "--trunks"), found, strict=False):
        begin = rf"{option}: node \S+ cannot use {uri}: "
        assert re.match(rf"{begin}.*ACCESS_DENIED during {refused}", message), message
        assert " --" not in message
    assert files(s3_bucket) == []


def test_a_folder_of_one_node_is_refused_where_more_come(tmp_path: Path) -> None:
    start_node()
    directory = Folder(tmp_path / "trunks")
    check_storage(directory, more_to_come=False)
    assert list(tmp_path.iterdir()) == []
    told = (
        f"^--trunks: {directory.uri} is on this node, nodes that start later would not see it: "
        "give --trunks s3://bucket/folder, or a folder that all nodes mount$"
    )
    with pytest.raises(UserError, match=told), folder_option("--trunks"):
        check_storage(directory, more_to_come=True)


def test_a_node_that_leaves_meanwhile_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    try:
        leaving = cluster.add_node(num_cpus=1)
        seen = [alive_nodes()]
        assert len(seen[0]) == 2
        cluster.remove_node(leaving)
        monkeypatch.setattr(shared_storage, "alive_nodes", seen.pop)
        check_storage(Folder(tmp_path), more_to_come=True)
        assert not seen
    finally:
        ray.shutdown()
        cluster.shutdown()
