"""clusters/aws.yaml, really brought up: moto is AWS, and each instance a host with an SSH server.

The steps of docs/aws.md, in its order and with its commands. What is not as shipped stands in
`_for_here` and in caller.py, and nowhere else.
"""

from __future__ import annotations

import io
import json
import secrets
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from tests.clusters import namespaces
from tests.clusters.caller import (
    ROOT,
    Caller,
    host_variables,
    with_packages_of_the_test,
)
from tests.clusters.ec2 import VARIABLES, Ec2
from tests.clusters.namespaces import GATEWAY, Host, Sandbox
from tests.tiny_runs import TINY, as_settings
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing())),
]

BUCKET = "conr-ray-test"
ACCOUNT = str(ROOT / "clusters" / "aws_account.py")
WANDB_KEY = secrets.token_hex(20)
# What is submitted: a search, its trial on two nodes, and a run. Neither says where its results go.
SEARCH = [
    *("python", "-m", "conr_ray.tune", "--address", "auto", "--space", "tiny.yaml"),
    *("--workers-per-trial", "2", "--gpus-per-worker", "0", "--name", "first"),
]
RUN = [
    *("python", "-m", "conr_ray.train", "--address", "auto", "--preset", "digits"),
    *("--cpus-per-worker", "1", "--gpus-per-worker", "0"),
]
SPACE = {
    "preset": "digits",
    "trials": 1,
    "scheduler": None,
    "fixed": TINY,
    "search": {"neighborhood.k1": {"int": [5, 20]}},
}


def _for_here(cluster: dict[str, Any]) -> dict[str, Any]:
    """The shipped file with what has to differ.

    - An idle node goes after half a minute, not ten.
    - Each node says that it has one core: three share those of this machine. So the two workers of
      a trial are never on one node. Its GPUs are AWS's word for the type; there are none.
    - Nodes find the packages of this test's environment.
    """
    cluster["idle_timeout_minutes"] = 0.5
    for kind in cluster["available_node_types"].values():
        kind["resources"] = {"CPU": 1}
    return with_packages_of_the_test(cluster)


@dataclass
class AwsCaller(Caller):
    """Who has an account at moto."""

    ec2: Ec2

    def nodes(self) -> dict[str, Host]:
        """The host of each node that runs, by the name of its type and its instance's id."""
        named = {}
        for instance in self.ec2.instances():
            if instance["State"]["Name"] == "running":
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                name = f"{tags['ray-user-node-type']} {instance['InstanceId']}"
                named[name] = self.ec2.hosts[instance["InstanceId"]]
        return named

    def head(self) -> Host:
        [head] = [host for name, host in self.nodes().items() if name.startswith("head ")]
        return head


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsCaller]:
    folder = tmp_path_factory.mktemp("aws")
    cluster = _for_here(yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text()))
    file = folder / "aws.yaml"
    file.write_text(yaml.safe_dump(cluster, sort_keys=False))
    home = folder / "caller"
    home.mkdir()
    # The hosts have moto's address and keys; on AWS the role of an instance brings keys.
    with Sandbox(folder) as sandbox, Ec2(sandbox, host_variables(folder, VARIABLES)) as ec2:
        caller = AwsCaller(sandbox, home, file, VARIABLES, ec2)
        began = time.monotonic()
        caller.run("python", ACCOUNT, "--bucket", BUCKET, "--ssh-from", f"{GATEWAY}/32")
        caller.run("ray", "get-auth-token", "--generate")
        print(f"account: {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        caller.ray("up", "-y")
        print(f"ray up: {time.monotonic() - began:.0f} s")
        yield caller


def test_only_the_caller_may_use_ssh(caller: AwsCaller) -> None:
    groups = caller.ec2.client("ec2").describe_security_groups(GroupNames=["conr-ray"])
    [group] = groups["SecurityGroups"]
    ssh, own = sorted(
        group["IpPermissions"], key=lambda rule: str(rule["IpProtocol"]), reverse=True
    )
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)
    assert [source["CidrIp"] for source in ssh["IpRanges"]] == [f"{GATEWAY}/32"]
    assert not own["IpRanges"]
    assert [pair["GroupId"] for pair in own["UserIdGroupPairs"]] == [group["GroupId"]]


def test_the_head_has_this_checkout(caller: AwsCaller) -> None:
    printed = caller.python_on_head("import conr_ray; print('at', conr_ray.__file__)")
    assert f"at {caller.head().home}/conr_ray/.venv/lib" in printed


def test_demand_brings_two_spot_workers_with_this_checkout(caller: AwsCaller) -> None:
    began = time.monotonic()
    paths = caller.packages("GPU", 2)
    print(f"two workers: {time.monotonic() - began:.0f} s")
    workers = {name: host for name, host in caller.nodes().items() if name.startswith("gpu ")}
    assert len(workers) == 2, caller.nodes()
    homes = {str(host.home) for host in workers.values()}
    assert {path.partition("/conr_ray/.venv/")[0] for path in paths} == homes
    instances = {i["InstanceId"]: i for i in caller.ec2.instances()}
    for name in workers:
        instance = instances[name.split()[1]]
        assert instance["InstanceType"] == "g5.xlarge"
        assert instance["InstanceLifecycle"] == "spot"
        assert instance["Placement"]["AvailabilityZone"] == "us-west-2a"
        assert instance["IamInstanceProfile"]["Arn"].endswith("/conr-ray-worker")
    # A command on the head has the token.
    assert "Node status" in caller.ray("exec", "ray status")


@pytest.fixture(scope="module")
def job_api(caller: AwsCaller) -> Iterator[str]:
    """`ray dashboard` in the background: the head's job API on the caller's localhost."""
    log = caller.sandbox.folder / "dashboard.log"
    command = ["ray", "dashboard", "--no-config-cache", str(caller.file)]
    process = caller.sandbox.start(command, log, caller.env)
    url = "http://localhost:8265"

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=30).close()
        except urllib.error.HTTPError:
            return True  # Refused, so there is somebody.
        except OSError:
            return False
        return True

    until(answers)
    yield url
    process.terminate()
    process.wait()


def test_a_key_of_wandb_reaches_the_job_and_no_file(caller: AwsCaller, job_api: str) -> None:
    # A job begins in the home of the node's user, from where the docs name the search spaces.
    space = "conr_ray/search_spaces/cifar10.yaml"
    code = f"import os; print(len(os.environ['WANDB_API_KEY']), os.path.exists('{space}'))"
    printed = _submit(caller, job_api, ["python", "-c", code])
    assert f"\n{len(WANDB_KEY)} True\n" in printed
    time.sleep(2)
    found = subprocess.run(
        ["grep", "-rlF", WANDB_KEY, caller.sandbox.folder], capture_output=True, text=True
    )
    assert found.stdout == ""


def test_a_search_on_two_nodes_ends_with_its_results_in_s3(caller: AwsCaller, job_api: str) -> None:
    folder = caller.sandbox.folder / "space"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPACE))
    began = time.monotonic()
    _submit(caller, job_api, SEARCH, working_directory=folder)
    print(f"search: {time.monotonic() - began:.0f} s")
    table = pyarrow.parquet.read_table(io.BytesIO(_stored(caller, "runs/first/trials.parquet")))
    assert [trial["state"] for trial in table.to_pylist()] == ["complete"]
    best = yaml.safe_load(_stored(caller, "runs/first/best.yaml"))
    assert best["data"]["limit"] == TINY["data.limit"]


@pytest.mark.long
def test_a_run_replaces_a_spot_node_that_is_taken_back_and_ends_with_its_results_in_s3(
    caller: AwsCaller, job_api: str
) -> None:
    # A worker on each of three nodes, and no node besides, so that the run needs a new one.
    until(lambda: len(caller.nodes()) == 1)
    epochs = 12
    settings = {**TINY, "schedule.epochs": epochs, "data.limit": 600, "optim.batch_size": 96}
    job = [*RUN, "--workers", "3", "--name", "lost", *as_settings(settings)]
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(_submit, caller, job_api, job)
        until(lambda: submitted.done() or len(_epochs(caller, "lost")) > 3)
        assert not submitted.done(), submitted.result()
        before = caller.nodes()
        assert len(before) == 3
        taken = next(name for name in before if name.startswith("gpu "))
        caller.ec2.limit(spot=1)
        caller.ec2.client("ec2").terminate_instances(InstanceIds=[taken.split()[1]])
        until(lambda: taken not in caller.nodes())
        began, seen = time.monotonic(), len(_epochs(caller, "lost"))
        until(lambda: len(_epochs(caller, "lost")) > seen + 1)
        print(f"trains on after {time.monotonic() - began:.0f} s")
        assert caller.nodes().keys() - before.keys()
        submitted.result()
    assert _epochs(caller, "lost") == list(range(epochs))


def test_strangers_are_refused(caller: AwsCaller) -> None:
    """From a host beside the cluster, and from the head itself for what listens only there."""
    head = caller.head()
    address = head.addresses[0]
    token = (caller.home / ".ray" / "auth_token").read_text().strip()
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin"
    stranger = caller.sandbox.add_host(["10.77.0.200"], "", {"PATH": path})
    ping = f"python -c {shlex.quote(_CLIENT_PING.format(address))}"
    client = f"python -c \"import ray; ray.init('ray://{address}:10001')\""
    gcs = f"ray status --address {address}:6379"
    fetch = "python -c \"import urllib.request; urllib.request.urlopen('{}', timeout=30)\""
    wrong = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64};"
    right = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token};"
    nobody = "export HOME=/nonexistent;"
    jobs = "http://localhost:8265/api/jobs/"
    tried = [
        (stranger, "dashboard", fetch.format(f"http://{address}:8265"), "Connection refused"),
        (stranger, "job API", f"ray job list --address http://{address}:8265", "Failed to connect"),
        (
            stranger,
            "job agent",
            fetch.format(f"http://{address}:52365/api/job_agent/jobs/x/logs"),
            "401",
        ),
        (stranger, "client port", ping, "UNAUTHENTICATED"),
        (stranger, "client port, wrong token", wrong + ping, "UNAUTHENTICATED"),
        (stranger, "GCS", gcs, "Unauth"),
        (stranger, "GCS, wrong token", wrong + gcs, "Unauth"),
        (head, "job API on localhost", nobody + fetch.format(jobs), "401"),
        (head, "dashboard on localhost", nobody + fetch.format(jobs[:-5] + "v0/nodes"), "401"),
    ]
    results = []
    for host, what, script, expected in tried:
        began = time.monotonic()
        done = host.run(script)
        said = [line for line in (done.stdout + done.stderr).split("\n") if expected in line]
        results.append((what, done.returncode, said[-1:] or (done.stdout + done.stderr)[-2000:]))
        print(*results[-1], f"{time.monotonic() - began:.0f} s", sep=" | ")
    assert all(code != 0 and isinstance(said, list) for _, code, said in results)
    # Of all ports that listen to others, only those with figures for Prometheus tell anything.
    listening = head.run("ss -Hltn | awk '{print $4}'").stdout.split()
    ends = [socket.rpartition(":") for socket in listening]
    ports = {port for host, _, port in ends if not host.startswith(("127.", "[::1]"))}
    probe = f"python -c {shlex.quote(_PROBE)} {address} {' '.join(ports)}"
    answers = json.loads(stranger.run(probe).stdout)
    print(answers)
    assert {"22", "6379", "10001"} <= answers.keys() == ports
    refusals = {"401", "UNAUTHENTICATED", "SSH"}
    assert all(answer in refusals or answer.startswith("# HELP") for answer in answers.values())
    # It was the token: with it, the stranger is let in by both ports.
    for script in (ping, client, gcs):
        done = stranger.run(right + script)
        logs = "tail -n 30 /tmp/ray/session_latest/logs/ray_client_server*.err"
        assert done.returncode == 0, done.stdout + done.stderr + head.run(logs).stdout
    stranger.end()


def test_idle_workers_are_taken_down(caller: AwsCaller) -> None:
    began = time.monotonic()
    until(lambda: len(caller.nodes()) == 1)
    print(f"idle workers gone: {time.monotonic() - began:.0f} s")
    assert next(iter(caller.nodes())).startswith("head ")


@pytest.mark.long
def test_without_spot_capacity_an_on_demand_worker_comes(caller: AwsCaller) -> None:
    until(lambda: len(caller.nodes()) == 1)
    caller.ec2.limit(spot=0)
    began = time.monotonic()
    caller.packages("GPU", 1)
    print(f"on-demand worker: {time.monotonic() - began:.0f} s")
    running = [i for i in caller.ec2.instances() if i["State"]["Name"] == "running"]
    assert sorted(i["InstanceType"] for i in running) == ["g5.xlarge", "m6i.xlarge"]
    assert not any("InstanceLifecycle" in instance for instance in running)


def test_down_leaves_nothing(caller: AwsCaller) -> None:
    caller.ray("down", "-y")
    assert caller.nodes() == {}
    until(lambda: all(host.ended for host in caller.ec2.hosts.values()))
    ec2, iam = caller.ec2.client("ec2"), caller.ec2.client("iam")
    assert ec2.describe_volumes()["Volumes"] == []
    caller.run("python", ACCOUNT, "--bucket", BUCKET, "--remove")
    # The account's role for spot instances is AWS's own.
    [role] = iam.list_roles()["Roles"]
    assert role["Path"] == "/aws-service-role/spot.amazonaws.com/"
    assert iam.list_instance_profiles()["InstanceProfiles"] == []
    groups = {group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    assert groups == {"default"}
    assert caller.ec2.error is None


# As `ray.init("ray://...")` begins, but for its half minute of trying again.
_CLIENT_PING = """
import os, grpc
from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc
channel = grpc.insecure_channel("{}:10001")
token = os.environ.get("RAY_AUTH_TOKEN")
ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(
    ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING),
    metadata=[("authorization", "Bearer " + token)] if token else [],
    timeout=30,
)
"""


# What a port answers to HTTP, and where that is the first frame of HTTP/2, what to gRPC: to a
# method of each of Ray's services, whichever is there.
_PROBE = """
import http.client, json, sys, urllib.error, urllib.request, grpc
METHODS = (
    "NodeManagerService/GetNodeStats", "ObjectManagerService/Pull",
    "CoreWorkerService/NumPendingTasks", "InternalKVGcsService/InternalKVKeys",
    "RayletDriver/ClusterInfo", "ReporterService/GetTraceback", "LogService/ListLogs",
)
def call(target, method):
    try:
        with grpc.insecure_channel(target) as channel:
            channel.unary_unary("/ray.rpc." + method)(b"", timeout=30)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name
def answer(target):
    try:
        found = urllib.request.urlopen("http://" + target + "/metrics", timeout=30)
        return found.readline().decode()
    except urllib.error.HTTPError as error:
        return str(error.code)
    except http.client.BadStatusLine as error:
        if "SSH" in error.line:
            return "SSH"
    codes = {call(target, method) for method in METHODS} - {"UNIMPLEMENTED"}
    return " ".join(sorted(codes))
print(json.dumps({port: answer(sys.argv[1] + ":" + port) for port in sys.argv[2:]}))
"""


def _submit(
    caller: AwsCaller, job_api: str, command: list[str], working_directory: Path | None = None
) -> str:
    """Submit a job as the docs do, and follow it to its end; gives what it printed."""
    environment = {"env_vars": {"WANDB_API_KEY": WANDB_KEY, "WANDB_MODE": "offline"}}
    options = ["--address", job_api, "--runtime-env-json", json.dumps(environment)]
    if working_directory is not None:
        options += ["--working-dir", str(working_directory)]
    return caller.run("ray", "job", "submit", *options, "--", *command)


def _epochs(caller: AwsCaller, run: str) -> list[int]:
    """Those that the metrics of a run have, none where it has not begun."""
    try:
        found = _stored(caller, f"runs/{run}/metrics.parquet")
    except caller.ec2.client("s3").exceptions.NoSuchKey:
        return []
    return [
        int(epoch) for epoch in pyarrow.parquet.read_table(io.BytesIO(found))["epoch"].to_pylist()
    ]


def _stored(caller: AwsCaller, key: str) -> bytes:
    """What is in the bucket."""
    return bytes(caller.ec2.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())
