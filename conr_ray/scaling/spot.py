"""What `ray up` starts instances of AWS with: spot ones, and where there are none, on-demand ones.

Ray's own provider asks for spot again and again. Where two node types differ in nothing but the
market, its autoscaler takes either.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# EC2's codes for: no capacity, price above the limit, quota of spot instances reached.
_NO_SPOT = frozenset(
    {
        "InsufficientInstanceCapacity",
        "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
    }
)


class SpotThenOnDemand(AWSNodeProvider):
    """Ray's provider for AWS, whose node types with InstanceMarketOptions can always be had."""

    def _create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        try:
            return self._create(node_config, tags, count)
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in _NO_SPOT:
                raise
            logger.warning("no spot instance (%s): starting an on-demand one", error.category)
        on_demand = {k: v for k, v in node_config.items() if k != "InstanceMarketOptions"}
        return self._create(on_demand, tags, count)

    def _create(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        return dict(super()._create_node(node_config, tags, count))  # type: ignore[no-untyped-call]
