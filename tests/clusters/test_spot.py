"""SpotThenOnDemand on moto's EC2, which has as many instances as a test says."""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException
from werkzeug.serving import make_server

from conr_ray.scaling.spot import SpotThenOnDemand
from tests.clusters import moto_server

pytestmark = pytest.mark.slow
SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}


@dataclass
class Market:
    """A provider with a cluster of its own, and the file that says how many instances there are."""

    provider: SpotThenOnDemand
    node_config: dict[str, Any]
    capacity: Path

    def limit(self, **left: int) -> None:
        """No more instances of a market can be started than these."""
        self.capacity.write_text(json.dumps(left))

    def start(self, count: int, **node_config: Any) -> Counter[str]:
        """Ask for nodes; gives how many came of each market."""
        tags = {"ray-node-kind": "worker"}
        self.provider.create_node({**self.node_config, **node_config}, tags, count)
        return self.running()

    def running(self) -> Counter[str]:
        nodes = self.provider.non_terminated_nodes({})  # type: ignore[no-untyped-call]
        found = self.provider.ec2.instances.filter(InstanceIds=nodes) if nodes else []
        return Counter(instance.instance_lifecycle or "on_demand" for instance in found)


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    capacity = tmp_path / "capacity.json"
    server = make_server("127.0.0.1", 0, moto_server.application(capacity), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    # Ray keeps one client for each pair of region and keys.
    keys = {"aws_access_key_id": secrets.token_hex(8), "aws_secret_access_key": "testing"}
    ec2 = boto3.client("ec2", region_name="us-west-2", **keys)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    provider = SpotThenOnDemand(  # type: ignore[no-untyped-call]
        {"region": "us-west-2", "cache_stopped_nodes": False, "aws_credentials": keys},
        secrets.token_hex(4),
    )
    config = {"InstanceType": "g5.xlarge", "ImageId": image, "SubnetIds": [subnet], **SPOT}
    yield Market(provider, config, capacity)
    server.shutdown()
    thread.join()


def test_spot_instances_come_where_there_are_enough(market: Market) -> None:
    assert market.start(3) == {"spot": 3}


@pytest.mark.parametrize("spot", [0, 1])
def test_what_spot_does_not_give_is_on_demand(market: Market, spot: int) -> None:
    market.limit(spot=spot)
    assert market.start(3) == Counter(spot=spot, on_demand=3 - spot)


def test_a_type_that_is_on_demand_stays_so(market: Market) -> None:
    del market.node_config["InstanceMarketOptions"]
    assert market.start(2) == {"on_demand": 2}


def test_a_mistake_in_the_file_is_not_taken_for_a_lack_of_capacity(market: Market) -> None:
    with pytest.raises(NodeLaunchException, match="InvalidSubnetID"):
        market.start(1, SubnetIds=["subnet-00000000000000000"])
    assert not market.running()


def test_a_lack_of_capacity_of_both_is_told(market: Market) -> None:
    market.limit(spot=1, on_demand=1)
    with pytest.raises(NodeLaunchException, match="2 of 3"):
        market.start(3)
    assert market.running() == {"spot": 1, "on_demand": 1}
