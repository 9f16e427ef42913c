"""The cluster files, without a cloud: every check below is shown to fail on a broken copy."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import moto
import pytest
import yaml
from botocore.model import ListShape, Shape, StructureShape
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import EC2Backend
from moto.iam.exceptions import InvalidInput
from moto.iam.models import IAMBackend
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.util.client.server.proxier import MAX_SPECIFIC_SERVER_PORT

from conr_ray.scaling.spot import SpotThenOnDemand
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
RAY_UP = ("aws.yaml", "gcp.yaml", "onprem.yaml")
# Ray's provider replaces it by one of them.
RAY_NODE_CONFIG = {"SubnetIds"}


def load(name: str) -> dict[str, Any]:
    """A file for `ray up`."""
    return dict(yaml.safe_load((CLUSTERS / name).read_text()))


def node_configs(cluster: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind["node_config"] for name, kind in cluster["available_node_types"].items()}


# Checks. Each takes what is to be checked, and raises.


@contextlib.contextmanager
def local_aws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        with moto.mock_aws():
            yield


def aws_provider(cluster: Mapping[str, Any]) -> type[AWSNodeProvider] | None:
    """The class that starts the instances, where they are AWS's."""
    provider = cluster["provider"]
    if provider["type"] not in ("aws", "external"):
        return None
    found: type[AWSNodeProvider] = _NODE_PROVIDERS[provider["type"]](provider)
    assert issubclass(found, AWSNodeProvider)
    return found


def check_ray_accepts(cluster: dict[str, Any]) -> None:
    """Ray's own schema and rules. For AWS, with what Ray looks up about the instance types."""
    cluster = prepare_config(copy.deepcopy(cluster))
    provider = aws_provider(cluster)
    if provider is not None:
        with local_aws():
            cluster = provider.fillout_available_node_types_resources(cluster)
    validate_config(cluster)


def check_aws_parameters(cluster: dict[str, Any]) -> None:
    """Names and types of all that goes to EC2's RunInstances, which Ray hands on unread."""
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for name, config in node_configs(cluster).items():
        known = {key: value for key, value in config.items() if key not in RAY_NODE_CONFIG}
        check_shape(known, shape, name)


def check_shape(value: Any, shape: Shape | None, path: str) -> None:
    """`value` against a shape of botocore's service models."""
    if isinstance(shape, StructureShape):
        assert isinstance(value, dict), f"{path}: not a mapping"
        for key, inner in value.items():
            assert key in shape.members, f"{path}: {key} is unknown"
            check_shape(inner, shape.members[key], f"{path}.{key}")
    elif isinstance(shape, ListShape):
        assert isinstance(value, list), f"{path}: not a list"
        for inner in value:
            check_shape(inner, shape.member, f"{path}[]")
    else:
        assert shape is not None
        python = {"integer": int, "long": int, "boolean": bool, "string": str}[shape.type_name]
        assert type(value) is python, f"{path}: {value!r} is no {shape.type_name}"
        assert not getattr(shape, "enum", ()) or value in shape.enum, f"{path}: {value!r}"


def check_aws_region(cluster: dict[str, Any]) -> None:
    """The region exists, the zone is one of it, images are pinned by id, disks are gp3."""
    region = cluster["provider"]["region"]
    assert region in boto3.Session().get_available_regions("ec2"), region
    assert re.fullmatch(rf"{region}[a-f]", cluster["provider"]["availability_zone"]), "one zone"
    text = (CLUSTERS / "aws.yaml").read_text()
    for name, config in node_configs(cluster).items():
        image = config["ImageId"]
        assert re.fullmatch(r"ami-[0-9a-f]{17}", image), f"{name}: {image}"
        assert f"{region} {image}" in text, f"{name}: {image} is not the one of {region}"
        for disk in config["BlockDeviceMappings"]:
            assert disk["Ebs"]["VolumeType"] == "gp3", name


def check_aws_rights(cluster: dict[str, Any]) -> None:
    """Every node has a role of ours, and the security group is ours: Ray's are open."""
    roles = {name: c["IamInstanceProfile"]["Name"] for name, c in node_configs(cluster).items()}
    head = roles.pop(cluster["head_node_type"])
    assert head == "conr-ray-head"
    assert set(roles.values()) == {"conr-ray-worker"}
    assert cluster["provider"]["security_group"]["GroupName"] == "conr-ray"


def check_aws_market(cluster: dict[str, Any]) -> None:
    """Workers are spot, the head is not, and the provider knows what to do without spot."""
    configs = node_configs(cluster)
    spot = {name for name, config in configs.items() if "InstanceMarketOptions" in config}
    assert spot == set(configs) - {cluster["head_node_type"]}
    assert aws_provider(cluster) is SpotThenOnDemand


def check_gcp(cluster: dict[str, Any]) -> None:
    """Forms of machine types, images and zones, and that all name one region."""
    provider = cluster["provider"]
    assert re.fullmatch(r"[a-z]+-[a-z]+\d", provider["region"])
    zone = provider["availability_zone"]
    assert re.fullmatch(rf"{provider['region']}-[a-f]", zone), zone
    for name, config in node_configs(cluster).items():
        assert re.fullmatch(r"[a-z]\d[a-z]?-[a-z]+-\d+", config["machineType"]), name
        for disk in config["disks"]:
            image = disk["initializeParams"]["sourceImage"]
            assert "/family/" not in image, f"{name}: a family is not pinned"
            assert re.fullmatch(r"projects/[\w-]+/global/images/[\w-]+-v\d{8}", image), name
            assert disk["initializeParams"]["diskType"].startswith(f"zones/{zone}/"), name
        for interface in config["networkInterfaces"]:
            assert f"/regions/{provider['region']}/" in interface["subnetwork"], name
        if name != cluster["head_node_type"]:
            [account] = config["serviceAccounts"]
            assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]


def check_starts(cluster: dict[str, Any]) -> None:
    """Token on every node, dashboard on the head's localhost, secrets out of Ray's logs."""
    for kind in ("head", "worker"):
        [start] = [c for c in cluster[f"{kind}_start_ray_commands"] if "ray start" in c]
        assert "ulimit -n 65536;" in start
        before, _, options = start.partition("ray start")
        assert "RAY_AUTH_MODE=token" in before, "no token"
        assert "RAY_LOGGER_LEVEL=warning" in before, "jobs' environments are logged"
        if kind == "head":
            assert "GRPC_ENABLE_FORK_SUPPORT=0" in before, "servers of clients die"
        assert ("--dashboard-host=127.0.0.1" in options) == (kind == "head"), "dashboard is open"
        assert "0.0.0.0" not in options, "listens for all"
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    exported = "'export RAY_AUTH_MODE=token' >> ~/.bashrc"
    assert any(exported in c for c in cluster["setup_commands"]), "shells have no token"


def check_storage_is_known(cluster: dict[str, Any]) -> None:
    """Every node has the caller's default of where results go."""
    local = cluster["file_mounts"]["~/.conr_ray/nodes.sh"]
    assert re.fullmatch(r"~/\.conr_ray/\w+\.sh", local)
    assert any("'. ~/.conr_ray/nodes.sh' >> ~/.bashrc" in c for c in cluster["setup_commands"])


def check_ships_the_package(cluster: dict[str, Any]) -> None:
    """All that pip needs of the checkout is mounted, and nothing large."""
    mounts = {k: v for k, v in cluster["file_mounts"].items() if k.startswith("~/conr_ray/")}
    for remote, local in mounts.items():
        assert remote == f"~/conr_ray/{local}"
        assert (ROOT / local).exists(), local
    assert {"conr_ray", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= set(
        mounts.values()
    )
    assert any("-c ~/conr_ray/constraints.txt ~/conr_ray" in c for c in cluster["setup_commands"])


def check_ceiling(text: str) -> None:
    """The price at the top is the sum that it says, of as many workers as there can be."""
    cluster = yaml.safe_load(text)
    money = r"(\d+\.\d+)"
    pattern = rf"At most \${money} an hour: head {money} \+ (\d+) workers x {money} \+ "
    pattern += rf"(\d+) disks x {money} \+ (\d+) addresses x {money}"
    found = re.search(pattern, text)
    assert found, "no ceiling"
    total, head, workers, worker, disks, disk, addresses, address = map(float, found.groups())
    assert workers == cluster["max_workers"], "the ceiling is of another number of workers"
    assert disks == addresses == workers + 1
    sum_ = head + workers * worker + disks * disk + addresses * address
    assert 0 <= total - sum_ < 0.01, f"{total} is not {sum_:.3f}"
    idle = re.search(rf"With no work[^$]*\${money}", text)
    assert idle, "no price of an idle cluster"
    assert abs(float(idle[1]) - (head + disk + address)) < 0.01
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["max_workers"] == 0
    assert not any(kind.get("min_workers") for kind in types.values()), "costs without work"


def check_header(text: str) -> None:
    """The commands at the top: their order, the token for the caller's, what macOS's sed takes."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.split("\n"))
    commands = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    steps = ["ray get-auth-token", "export RAY_AUTH_MODE=token", "ray up", "ray job submit"]
    if "type: gcp" in text:
        steps.insert(0, "gcloud auth login && gcloud auth application-default login")
    places = [[n for n, c in enumerate(commands) if c.startswith(step)] for step in steps]
    assert all(len(place) == 1 for place in places), dict(zip(steps, places, strict=True))
    assert places == sorted(places)
    assert not any(re.search(r"sed -i\s", command) for command in commands)


def check_no_secret(text: str) -> None:
    """No key, token or password by its form, nor a variable that is set to one."""
    forms = {
        "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
        "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
        "a key of W&B or a token": r"(?<![\w-])[0-9a-f]{40,64}(?![\w-])",
        "a secret": r"(?i)(API_KEY|AUTH_TOKEN|SECRET_ACCESS_KEY|PASSWORD)[\"']?\s*[:=]\s*[\"']?\w",
    }
    for what, form in forms.items():
        found = re.search(form, text)
        assert not found, f"{what}: {found}"


def check_bash(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def started_by_slurm(text: str, job: int) -> dict[str, list[str]]:
    """What slurm.sh calls `ray` and `srun` with on three nodes, which stand-ins for them note."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").write_text(f"PATH={folder}:$PATH\n")
        note = f'#!/bin/sh\necho "$@" > {folder}/$(basename $0).new\n'
        note += f"mv {folder}/$(basename $0).new {folder}/$(basename $0).called; exec sleep 60\n"
        # The one that asks how many nodes there are, and any other.
        python = f'case $2 in *ray.init*) echo 3;; *) exec {sys.executable} "$@";; esac'
        for tool, script in {"ray": note, "srun": note, "python": f"#!/bin/sh\n{python}\n"}.items():
            (folder / tool).write_text(script)
            (folder / tool).chmod(0o755)
        both = "until test -e ray.called -a -e srun.called; do sleep 0.05; done"
        job_variables = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NUM_NODES": "3"}
        done = subprocess.run(
            ["bash", "-c", text, "slurm.sh", "sh", "-c", both],
            cwd=folder,
            env={**os.environ, **job_variables, "SLURM_CPUS_PER_TASK": "8"},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "3 of 3 nodes" in done.stdout
        return {tool: (folder / f"{tool}.called").read_text().split() for tool in ("ray", "srun")}


def check_slurm_ports(text: str) -> None:
    """Jobs on one node do not meet, nor with ports that Ray or Linux gives away by itself."""
    found = []
    for job in (1234, 1235, 5799):
        calls = started_by_slurm(text, job)
        ports = [int(word.partition("port=")[2]) for word in calls["ray"] if "port=" in word]
        assert len(ports) == 3
        assert f":{ports[0]}" in calls["srun"][-1]
        found += ports
    assert len(set(found)) == len(found), found
    assert all(MAX_SPECIFIC_SERVER_PORT <= port < 32768 for port in found), found


def check_slurm_workers(text: str) -> None:
    """The step of the workers has what srun does not take over from the job."""
    srun = started_by_slurm(text, 1)["srun"]
    options = srun[: srun.index("ray")]
    assert {"--no-kill", "--cpus-per-task=8", "--nodes=2", "--ntasks=2"} <= set(options), options


def check_kuberay_rights(text: str) -> None:
    """Workers do not share the head's account, to which the operator adds rights on pods."""
    cluster = next(yaml.safe_load_all(text))["spec"]
    [workers] = cluster["workerGroupSpecs"]
    head, worker = (
        group["template"]["spec"]["serviceAccountName"]
        for group in (cluster["headGroupSpec"], workers)
    )
    assert head != worker
    for account in (head, worker):
        assert f"create serviceaccount {account}\n" in text, f"nobody makes {account}"


# The files as they are.


# Ray looks up the types of instances, one page after another.
_SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize("name", RAY_UP)
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check_ray_accepts, **_SLOW),
        check_starts,
        check_ships_the_package,
        check_storage_is_known,
    ],
)
def test_ray_up_files(name: str, check: Callable[[dict[str, Any]], None]) -> None:
    check(load(name))


@pytest.mark.parametrize(
    "check", [check_aws_parameters, check_aws_region, check_aws_rights, check_aws_market]
)
def test_aws(check: Callable[[dict[str, Any]], None]) -> None:
    check(load("aws.yaml"))


def test_aws_with_the_commented_blocks() -> None:
    text = (CLUSTERS / "aws.yaml").read_text()
    block = re.search(r"(?m)^ +# Placement:(.*\n)(?: +# .*\n)+", text)
    assert block
    uncommented = re.sub(r"(?m)^( +)# ", r"\1", block.group())
    cluster = yaml.safe_load(text.replace(block.group(), uncommented))
    assert cluster["available_node_types"]["gpu"]["node_config"]["NetworkInterfaces"]
    check_aws_parameters(cluster)


def test_gcp() -> None:
    check_gcp(load("gcp.yaml"))


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_the_ceiling_at_the_top(name: str) -> None:
    check_ceiling((CLUSTERS / name).read_text())


@pytest.mark.parametrize("name", RAY_UP)
def test_the_commands_at_the_top(name: str) -> None:
    check_header((CLUSTERS / name).read_text())


@pytest.mark.parametrize("path", sorted(CLUSTERS.iterdir()), ids=lambda path: path.name)
def test_no_secret(path: Path) -> None:
    if path.is_file():
        check_no_secret(path.read_text())


@pytest.mark.parametrize("check", [check_bash, check_slurm_ports, check_slurm_workers])
def test_slurm(check: Callable[[str], None]) -> None:
    check((CLUSTERS / "slurm.sh").read_text())


def test_kuberay_rights() -> None:
    check_kuberay_rights((CLUSTERS / "kuberay.yaml").read_text())


@pytest.mark.parametrize("name", ["aws-s3-policy.json", "aws-head-policy.json"])
def test_policies_allow_no_more(name: str) -> None:
    policy = yaml.safe_load((CLUSTERS / name).read_text())
    actions = set()
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        listed = statement["Action"]
        actions |= set([listed] if isinstance(listed, str) else listed)
    assert not any("*" in action for action in actions)
    if name == "aws-s3-policy.json":
        resources = {statement["Resource"] for statement in policy["Statement"]}
        assert resources == {"arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"}
        assert {action.partition(":")[0] for action in actions} == {"s3"}


# Broken copies: each check can fail.


def _with(name: str, *path: str, value: Any) -> dict[str, Any]:
    cluster = load(name)
    inner = cluster
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return cluster


_GPU = ("available_node_types", "gpu")
_SPOT = ("available_node_types", "gpu_spot")


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        *(
            pytest.param(check_ray_accepts, broken, **_SLOW)
            for broken in (
                _with("aws.yaml", "idle_timeout", value=10),
                _with("aws.yaml", "head_node_type", value="haed"),
                _with("aws.yaml", *_GPU, "node_config", "InstanceType", value="g5.x"),
            )
        ),
        (check_ray_accepts, _with("gcp.yaml", *_SPOT, "resources", value={"GPU": "one"})),
        (check_aws_parameters, _with("aws.yaml", *_GPU, "node_config", "ImageID", value="ami-0")),
        (
            check_aws_parameters,
            _with("aws.yaml", *_GPU, "node_config", "InstanceMarketOptions", "Type", value="spot"),
        ),
        (
            check_aws_parameters,
            _with(
                "aws.yaml", *_GPU, "node_config", "MetadataOptions", "HttpTokens", value="needed"
            ),
        ),
        (check_aws_region, _with("aws.yaml", "provider", "region", value="us-west-9")),
        (check_aws_region, _with("aws.yaml", "provider", "region", value="us-east-1")),
        (check_aws_region, _with("aws.yaml", *_GPU, "node_config", "ImageId", value="latest")),
        (
            check_aws_region,
            _with("aws.yaml", "provider", "availability_zone", value="us-west-2a,us-west-2b"),
        ),
        (
            check_aws_rights,
            _with("aws.yaml", "provider", "security_group", value={"GroupName": ""}),
        ),
        (check_gcp, _with("gcp.yaml", *_SPOT, "node_config", "machineType", value="g2")),
        (check_gcp, _with("gcp.yaml", "provider", "availability_zone", value="us-east1-b")),
        (check_starts, _with("onprem.yaml", "head_start_ray_commands", value=["ray start --head"])),
        (check_starts, _with("gcp.yaml", "setup_commands", value=["true"])),
        (check_ships_the_package, _with("onprem.yaml", "file_mounts", value={})),
        (check_storage_is_known, _with("gcp.yaml", "setup_commands", value=["true"])),
    ],
)
def test_broken_ray_up_files(
    check: Callable[[dict[str, Any]], None], broken: dict[str, Any]
) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(broken)


@pytest.mark.parametrize(
    ("name", "old", "new", "check"),
    [
        ("aws.yaml", "max_workers: 4\nupscaling", "max_workers: 40\nupscaling", check_ceiling),
        ("aws.yaml", "$4.33", "$3.43", check_ceiling),
        ("aws.yaml", "$4.33", "$4.32", check_ceiling),
        ("aws.yaml", " + 5 addresses x 0.005", "", check_ceiling),
        ("aws.yaml", "$0.21", "$0.19", check_ceiling),
        ("gcp.yaml", "min_workers: 0", "min_workers: 1", check_ceiling),
        ("aws.yaml", "#   export RAY_AUTH_MODE=token", "#", check_header),
        ("onprem.yaml", "#   ray up", "#   ray job submit", check_header),
        ("gcp.yaml", "application-default login", "login", check_header),
        ("gcp.yaml", "sed -i.bak", "sed -i", check_header),
        ("gcp.yaml", "RAY_AUTH_MODE=token", "WANDB_API_KEY=x", check_no_secret),
        ("onprem.yaml", "~/.ssh/conr_ray", "0123456789abcdef" * 4, check_no_secret),
        ("slurm.sh", "trap stop EXIT", "trap 'stop EXIT", check_bash),
        ("slurm.sh", "% 2900 * 3", "% 2900", check_slurm_ports),
        (
            "slurm.sh",
            "24000 + SLURM_JOB_ID % 2900",
            "20000 + SLURM_JOB_ID % 4200",
            check_slurm_ports,
        ),
        ("slurm.sh", "--no-kill --cpus-per-task", "--cpus-per-task", check_slurm_workers),
        ("slurm.sh", '--cpus-per-task="$SLURM_CPUS_PER_TASK"', "", check_slurm_workers),
        (
            "kuberay.yaml",
            "serviceAccountName: conr-ray-worker",
            "serviceAccountName: conr-ray-head",
            check_kuberay_rights,
        ),
        (
            "kuberay.yaml",
            "serviceaccount conr-ray-worker",
            "serviceaccount x",
            check_kuberay_rights,
        ),
    ],
)
def test_broken_text(name: str, old: str, new: str, check: Callable[[str], None]) -> None:
    text = (CLUSTERS / name).read_text()
    assert old in text
    with pytest.raises(AssertionError):
        check(text.replace(old, new))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_slurm_says_how_it_is_called() -> None:
    done = subprocess.run(
        ["bash", CLUSTERS / "slurm.sh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")


# aws_account.py, with moto.

HOME, OFFICE = "203.0.113.7/32", "198.51.100.0/24"


@pytest.fixture
def fresh_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a session of boto3 without anything of AWS."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def account(fresh_caller: None) -> Iterator[None]:
    with local_aws():
        yield


def run_aws_account(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aws_account.py", "--bucket", "conr-ray-test", *arguments])
        runpy.run_path(str(CLUSTERS / "aws_account.py"), run_name="__main__")


def refusal(*arguments: str) -> str:
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as stopped:
        run_aws_account(*arguments)
    line = stopped.value.code
    assert isinstance(line, str)
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def let_in() -> list[str]:
    """Who may use SSH. The nodes may reach each other all the time."""
    groups = boto3.client("ec2", "us-west-2").describe_security_groups(GroupNames=["conr-ray"])
    [group] = groups["SecurityGroups"]
    [own] = [rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "-1"]
    assert [pair["GroupId"] for pair in own["UserIdGroupPairs"]] == [group["GroupId"]]
    ssh = [rule for rule in group["IpPermissions"] if rule.get("FromPort") == 22]
    return sorted(source["CidrIp"] for rule in ssh for source in rule["IpRanges"])


def role_paths() -> list[str]:
    return sorted(role["Path"] for role in boto3.client("iam").list_roles()["Roles"])


@pytest.mark.usefixtures("account")
def test_ssh_is_opened_before_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_aws_account("--ssh-from", HOME)
    assert "no longer" not in capsys.readouterr().out
    revoke, seen = EC2Backend.revoke_security_group_ingress, []

    def note(backend: EC2Backend, *arguments: Any, **options: Any) -> None:
        seen.append(let_in())
        revoke(backend, *arguments, **options)

    monkeypatch.setattr(EC2Backend, "revoke_security_group_ingress", note)
    run_aws_account("--ssh-from", OFFICE, HOME)
    assert let_in() == [OFFICE, HOME]
    assert seen == []
    run_aws_account("--ssh-from", "192.0.2.1")
    assert seen[0] == ["192.0.2.1/32", OFFICE, HOME]
    assert let_in() == ["192.0.2.1/32"]
    said = capsys.readouterr().out
    assert "no longer SSH from" in said
    assert OFFICE in said
    assert HOME in said


@pytest.mark.usefixtures("account")
def test_ranges_of_addresses() -> None:
    run_aws_account("--ssh-from", "198.51.100.7/24", "198.51.100.9/24")
    assert let_in() == [OFFICE]
    for nonsense in ("home", "203.0.113.300/32", "2001:db8::1/128"):
        assert repr(nonsense) in refusal("--ssh-from", nonsense)
    assert let_in() == [OFFICE]


@pytest.mark.usefixtures("account")
def test_the_role_for_spot_is_the_accounts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spot = "/aws-service-role/spot.amazonaws.com/"
    run_aws_account("--ssh-from", HOME)
    assert role_paths() == ["/", "/", spot]
    run_aws_account("--ssh-from", HOME)

    # What AWS answers. moto has another code.
    def taken(*_: Any, **__: Any) -> None:
        raise InvalidInput("Service role name AWSServiceRoleForEC2Spot has been taken")

    monkeypatch.setattr(IAMBackend, "create_service_linked_role", taken)
    run_aws_account("--ssh-from", HOME)
    run_aws_account("--remove")
    assert role_paths() == [spot]
    assert "still there: the account's role for spot" in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_caller")
def test_an_account_needs_keys() -> None:
    assert "`aws configure`" in refusal("--ssh-from", HOME)
    assert "`aws configure`" in refusal("--remove")


@pytest.mark.usefixtures("account")
def test_a_bucket_of_someone_else() -> None:
    other = boto3.client("sts", "us-west-2").assume_role(
        RoleArn="arn:aws:iam::111111111111:role/other", RoleSessionName="other"
    )["Credentials"]
    boto3.client(
        "s3",
        "us-east-1",
        aws_access_key_id=other["AccessKeyId"],
        aws_secret_access_key=other["SecretAccessKey"],
        aws_session_token=other["SessionToken"],
    ).create_bucket(Bucket="conr-ray-test")
    assert "choose another name" in refusal("--ssh-from", HOME)


@pytest.mark.usefixtures("account")
def test_nothing_is_removed_while_there_are_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = EC2Backend.delete_security_group

    # As AWS does it. moto deletes groups in use.
    def delete_unused(backend: EC2Backend, *, group_id: str) -> None:
        for instance in backend.all_instances():
            used = group_id in [group.id for group in instance.security_groups]
            if used and instance.state != "terminated":
                raise DependencyViolationError(f"resource {group_id} has a dependent object")
        delete(backend, group_id=group_id)

    monkeypatch.setattr(EC2Backend, "delete_security_group", delete_unused)
    run_aws_account("--ssh-from", HOME)
    ec2 = boto3.client("ec2", "us-west-2")
    [group] = ec2.describe_security_groups(GroupNames=["conr-ray"])["SecurityGroups"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    [instance] = ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, SecurityGroupIds=[group["GroupId"]]
    )["Instances"]
    assert "`ray down" in refusal("--remove")
    assert len(role_paths()) == 3
    assert let_in() == [HOME]
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    run_aws_account("--remove")
    assert len(role_paths()) == 1
