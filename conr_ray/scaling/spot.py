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

_NO_CAPACITY = "InsufficientInstanceCapacity"
# EC2's codes for: no capacity, price above the limit, quota of spot instances reached.
_NO_SPOT = frozenset({_NO_CAPACITY, "SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded"})


class SpotThenOnDemand(AWSNodeProvider):
    """Ray's provider for AWS, whose node types with InstanceMarketOptions can always be had.

    Of those that a call asks for EC2 starts as many as it has. Ray takes all for started, and its
    autoscaler counts on them for ten minutes. Here, what spot does not give is started on demand,
    and what that does not give either is an error.
    """

    def _create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        on_demand = {k: v for k, v in node_config.items() if k != "InstanceMarketOptions"}
        started = {}
        if on_demand != node_config:
            try:
                started = self._create(node_config, tags, count)
            except NodeLaunchException as error:
                if error.category not in _NO_SPOT:
                    raise
            if len(started) == count:
                return started
            logger.warning("%d of %d spot instances: on-demand ones start", len(started), count)
        started |= self._create(on_demand, tags, count - len(started))
        if len(started) < count:
            raise NodeLaunchException(_NO_CAPACITY, f"{len(started)} of {count} started", None)
        return started

    def _create(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        return dict(super()._create_node(node_config, tags, count))  # type: ignore[no-untyped-call]
