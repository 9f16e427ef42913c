"""Resources that dead processes of Ray Train still hold."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

# Created at run time, invisible to type checkers.
_TABLE: Any = vars(gcs_pb2)["PlacementGroupTableData"]


def free_abandoned() -> int:
    """Free the placement groups of this job whose creators are dead; their number.

    Ray Train frees those of a controller that dies while its workers train. One that dies while
    they start, which takes seconds, leaves their resources taken until the job ends, and the trial
    waits for itself.
    """
    # Ray's public tables do not tell creators.
    accessor = state._connect_and_get_accessor()
    tables = map(_TABLE.FromString, accessor.get_placement_group_table())
    job = ray.get_runtime_context().get_job_id()
    abandoned = [
        table.placement_group_id
        for table in tables
        if table.creator_actor_dead
        # Of a group that the driver made, Ray tells the same.
        and not ray.ActorID(table.creator_actor_id).is_nil()
        and table.creator_job_id.hex() == job
        and table.state != _TABLE.REMOVED
    ]
    for group in abandoned:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))
    return len(abandoned)
