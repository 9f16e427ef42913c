"""`python clusters/aws_account.py --bucket NAME`: create what aws.yaml expects of an AWS account.

Creates a bucket without public access; the roles of head and workers with the two policies in this
folder, and AWS's service-linked role for spot instances; a security group that allows SSH from the
given addresses (default: yours) and any traffic between nodes. Run it again to update all of it,
for example when your address has changed. Writes ~/.conr_ray/aws.sh, from which nodes learn that
results go to the bucket. `--remove` removes everything but the bucket and AWS's role.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

_HERE = Path(__file__).parent
# The environment of the nodes of aws.yaml.
_NODES = Path("~/.conr_ray/aws.sh").expanduser()
_TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
)
# What to do about an error, by its code or class.
_REMEDIES = {
    **dict.fromkeys(
        (
            *("NoCredentialsError", "PartialCredentialsError"),
            *("AuthFailure", "ExpiredToken", "InvalidAccessKeyId", "InvalidClientTokenId"),
            *("RequestExpired", "SignatureDoesNotMatch"),
        ),
        "set the keys of an account with `aws configure`",
    ),
    "BucketAlreadyExists": "it belongs to someone else, choose another name",
    "DependencyViolation": "instances still exist: run `ray down clusters/aws.yaml`, and try again"
    " in a minute, when they have shut down",
}


def main() -> None:
    """Parse, then create or remove. Errors are printed in one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bucket", required=True, help="for searches and data; created if missing")
    parser.add_argument(
        "--ssh-from",
        nargs="+",
        metavar="CIDR",
        help="addresses that may use SSH, such as 203.0.113.7/32 198.51.100.0/24 (default: yours)",
    )
    parser.add_argument(
        "--remove", action="store_true", help="remove everything it created except the bucket"
    )
    args = parser.parse_args()
    try:
        if args.remove:
            _remove(args.bucket)
        else:
            _make(args.bucket, args.ssh_from)
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(f"error: {_told(error)}") from None


def _make(bucket: str, ssh_from: Sequence[str] | None) -> None:
    sources = list(dict.fromkeys(map(_network, ssh_from or [_own_address()])))
    closed = _account(bucket).make(sources)
    _NODES.parent.mkdir(exist_ok=True)
    _NODES.write_text(f"export CONR_RAY_STORAGE=s3://{bucket}/runs\n")
    if closed:
        print(f"no longer SSH from {', '.join(closed)}: --ssh-from must list every address")
    print(f"ready: s3://{bucket}, SSH from {', '.join(sources)}; next: ray up clusters/aws.yaml")


def _remove(bucket: str) -> None:
    _account(bucket).remove()
    print(
        f"removed; still there: the account's role for spot instances (AWS's own) and the bucket,"
        f" which aws s3 rb --force s3://{bucket} removes"
    )


def _account(bucket: str) -> Account:
    return Account(yaml.safe_load((_HERE / "aws.yaml").read_text()), bucket)


def _told(error: BotoCoreError | ClientError) -> str:
    """An error in one line, with its remedy if one is known."""
    is_answer = isinstance(error, ClientError)
    code = error.response["Error"]["Code"] if is_answer else type(error).__name__
    remedy = [_REMEDIES[code]] if code in _REMEDIES else []
    return ": ".join([" ".join(str(error).split()), *remedy])


class Account:
    """The resources of an account that a cluster file names."""

    def __init__(self, cluster: dict[str, Any], bucket: str) -> None:
        self._name: str = cluster["cluster_name"]
        self._region: str = cluster["provider"]["region"]
        self._group_name: str = cluster["provider"]["security_group"]["GroupName"]
        self._bucket = bucket
        self._head, self._worker = (
            cluster["available_node_types"][kind]["node_config"]["IamInstanceProfile"]["Name"]
            for kind in ("head", "gpu")
        )
        self._ec2 = boto3.client("ec2", self._region)
        self._iam = boto3.client("iam")
        self._s3 = boto3.client("s3", self._region)

    def make(self, ssh_from: Sequence[str]) -> list[str]:
        """Create what is missing and update what exists.

        Returns:
            addresses that can no longer use SSH.
        """
        self._make_bucket()
        self._make_spot_role()
        storage = {"storage": self._policy("aws-s3-policy.json")}
        arn = self._make_role(self._worker, storage)
        nodes = {"nodes": self._policy("aws-head-policy.json", WORKER_ROLE_ARN=arn)}
        self._make_role(self._head, storage | nodes)
        return self._make_group(ssh_from)

    def remove(self) -> None:
        """Remove roles and security group if they exist; nothing while instances exist."""
        vpc = self._default_vpc()
        group = self._group(vpc) if vpc else None
        # First: AWS refuses it while there are instances, which need their roles until they end.
        if group is not None:
            self._ec2.delete_security_group(GroupId=group["GroupId"])
        for role in (self._head, self._worker):
            with _missing_is_fine():
                self._iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
            with _missing_is_fine():
                self._iam.delete_instance_profile(InstanceProfileName=role)
            with _missing_is_fine():
                for name in self._iam.list_role_policies(RoleName=role)["PolicyNames"]:
                    self._iam.delete_role_policy(RoleName=role, PolicyName=name)
                self._iam.delete_role(RoleName=role)

    def _make_bucket(self) -> None:
        where: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        if self._region == "us-east-1":
            where = {}
        with _existing_is_fine():
            self._s3.create_bucket(Bucket=self._bucket, **where)
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy")
        self._s3.put_public_access_block(
            Bucket=self._bucket,
            PublicAccessBlockConfiguration=dict.fromkeys((*closed, "RestrictPublicBuckets"), True),
        )

    def _make_spot_role(self) -> None:
        # One per account. AWS creates it for spot requests on its website but not for programs, and
        # the head's role may not. InvalidInput: it exists.
        with _Expected("InvalidInput", "EntityAlreadyExists"):
            self._iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")

    def _policy(self, file: str, **values: str) -> str:
        text = (_HERE / file).read_text()
        known = {"BUCKET": self._bucket, "REGION": self._region, "CLUSTER": self._name}
        for name, value in (known | values).items():
            text = text.replace(name, value)
        return text

    def _make_role(self, role: str, policies: dict[str, str]) -> str:
        """Create the role and an instance profile of the same name; return the role's ARN."""
        with _existing_is_fine():
            self._iam.create_role(RoleName=role, AssumeRolePolicyDocument=_TRUST)
        for name, document in policies.items():
            self._iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=document)
        with _existing_is_fine():
            self._iam.create_instance_profile(InstanceProfileName=role)
        profile = self._iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]
        if not profile["Roles"]:
            self._iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        return str(self._iam.get_role(RoleName=role)["Role"]["Arn"])

    def _make_group(self, ssh_from: Sequence[str]) -> list[str]:
        vpc = self._default_vpc()
        if vpc is None:
            raise SystemExit(
                f"error: {self._region} has no default VPC: run aws ec2 create-default-vpc"
            )
        group = self._group(vpc)
        if group is None:
            self._ec2.create_security_group(
                GroupName=self._group_name, Description="Nodes of conr_ray", VpcId=vpc
            )
            group = self._group(vpc)
            assert group is not None
        own = group["GroupId"]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        wanted: list[dict[str, Any]] = [
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": own}]},
            {**ssh, "IpRanges": [{"CidrIp": cidr} for cidr in ssh_from]},
        ]
        should, there = _rules(wanted), _rules(group["IpPermissions"])
        missing = [rule for key, rule in should.items() if key not in there]
        stale = {key: rule for key, rule in there.items() if key not in should}
        # In this order: `ray up` opens a group without rules to all addresses.
        if missing:
            self._ec2.authorize_security_group_ingress(GroupId=own, IpPermissions=missing)
        if stale:
            self._ec2.revoke_security_group_ingress(GroupId=own, IpPermissions=list(stale.values()))
        return [source for _, *ports, source in stale if ports == [22, 22]]

    def _default_vpc(self) -> str | None:
        found = self._ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])
        return str(found["Vpcs"][0]["VpcId"]) if found["Vpcs"] else None

    def _group(self, vpc: str) -> dict[str, Any] | None:
        filters = [
            {"Name": "group-name", "Values": [self._group_name]},
            {"Name": "vpc-id", "Values": [vpc]},
        ]
        found = self._ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        return dict(found[0]) if found else None


def _rules(permissions: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rules with one source each, keyed by protocol, ports and source."""
    kinds = {
        "IpRanges": "CidrIp",
        "Ipv6Ranges": "CidrIpv6",
        "PrefixListIds": "PrefixListId",
        "UserIdGroupPairs": "GroupId",
    }
    rules: dict[tuple[Any, ...], dict[str, Any]] = {}
    for permission in permissions:
        protocol = permission["IpProtocol"]
        # Not all protocols have ports.
        ports: dict[str, Any] = {
            name: permission[name] for name in ("FromPort", "ToPort") if name in permission
        }
        for kind, name in kinds.items():
            for source in permission.get(kind, []):
                key = (protocol, *ports.values(), source[name])
                rules[key] = {"IpProtocol": protocol, **ports, kind: [source]}
    return rules


class _Expected:
    """Lets errors of the given codes pass."""

    def __init__(self, *codes: str) -> None:
        self._codes = codes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, ClientError) and error.response["Error"]["Code"] in self._codes


def _existing_is_fine() -> _Expected:
    return _Expected("EntityAlreadyExists", "BucketAlreadyOwnedByYou")


def _missing_is_fine() -> _Expected:
    return _Expected("NoSuchEntity")


def _network(cidr: str) -> str:
    try:
        return str(ipaddress.IPv4Network(cidr, strict=False))
    except ValueError:
        raise SystemExit(f"error: {cidr!r} is not an IPv4 range such as 203.0.113.7/32") from None


def _own_address() -> str:
    try:
        with urllib.request.urlopen("https://checkip.amazonaws.com", timeout=10) as answer:
            return str(answer.read().decode().strip())
    except OSError as error:
        raise SystemExit(
            f"error: could not look up your address ({error}): give it with --ssh-from"
        ) from None


if __name__ == "__main__":
    main()
