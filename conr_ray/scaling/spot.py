"""The AWS provider for `ray up`: starts spot instances and, if there are too few, on-demand ones.

Ray's own provider keeps asking for spot. With two node types that differ only in the market, its
autoscaler picks either.
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
    """Ray's AWS provider, with on-demand instances where spot capacity is missing.

    EC2 may start fewer instances than requested. Ray assumes that all were started, and its
    autoscaler counts on them for ten minutes. Here, missing spot instances are started on demand,
    and if on-demand instances are missing too, that is an error.
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
            logger.warning("%d of %d spot instances; the rest on demand", len(started), count)
        started |= self._create(on_demand, tags, count - len(started))
        if len(started) < count:
            raise NodeLaunchException(_NO_CAPACITY, f"{len(started)} of {count} started", None)
        return started

    def _create(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        return dict(super()._create_node(node_config, tags, count))  # type: ignore[no-untyped-call]
