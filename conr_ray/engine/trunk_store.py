"""The store of trunks, each named by a hash of everything that determines it.

That is the fields and samples of a run, and the versions of the code that trains an instance stage.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conr_ray.config import RunConfig
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_fields import trunk_config
from conr_ray.errors import StorageError
from conr_ray.method.backbone_names import is_timm
from conr_ray.storage.files import Folder
from conr_ray.storage.locks import FileLocks, Locks

# Version of the code that trains an instance stage or computes its metric rows, except the
# frameworks, which have their own. Increase it with every change of results, as detected by
# `tests/engine/test_trunk_results.py`.
RESULTS_VERSION = 3


def trunk_name(
    config: RunConfig, fingerprint: str, weights: str | None = None, edits: str | None = None
) -> str:
    """A hash that only runs on equal samples with the same instance stage share.

    Code enters by its versions only: a rewrite with the same results keeps its trunks. So do
    initial weights, wherever they are: `weights` is their digest, if the run starts from any, and
    `edits` that of a person's word, if it learns from any.

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    # Frameworks need torch.
    from conr_ray.method.frameworks import framework_class
    from conr_ray.pretrained import preparation_of

    tree = trunk_config(config).model_dump(mode="json")
    # Samples enter by their fingerprint.
    for section in ("data", "checkpoint", "tracking"):
        del tree[section]
    del tree["model"]["init"], tree["model"]["weights"], tree["clustering"]["edits"]
    # As it is without these fields; the first one is of the group stage alone.
    del tree["neighborhood"]["pool"]
    if tree["model"]["train"] == "all":
        del tree["model"]["train"]
    if is_timm(config.model.backbone) and not config.embeds_once:
        # What an unset size stands for, and what another timm may know better.
        tree["views"] |= preparation_of(config.model.backbone, config.views.size).as_json()
    versions = [RESULTS_VERSION, framework_class(config.model.framework).version]
    given: list[Any] = [] if weights is None else [weights]
    # Told apart from weights.
    given += [] if edits is None else [{"edits": edits}]
    text = json.dumps([tree, fingerprint, versions, *given], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrunkStore:
    """Trunks under one folder.

    Attributes:
        uri: of the folder, a local path or a URI such as s3://bucket/folder.
        starts: epochs at which runs may leave a trunk; its checkpoints there are kept.
        locks: keep runs from building the same trunk at once.
    """

    uri: str
    starts: frozenset[int]
    locks: Locks

    def directory(self, name: str) -> RunDirectory:
        """The trunk called `name`."""
        return RunDirectory(f"{self.uri}/{name}")

    def is_empty(self) -> bool:
        """Whether there are no trunks."""
        return not RunDirectory(self.uri).folder_names("")

    def epochs_trained(self, name: str) -> int | None:
        """Epochs that the trunk `name` has trained; None in a bucket, where reading is slow."""
        trunk = self.directory(name)
        return len(trunk.metric_rows()) if trunk.is_local else None

    def fork_epoch(self, config: RunConfig) -> int:
        """The epoch at which a run of `config` leaves its trunk; 0 if it has none.

        A run without a group stage follows the trunk as far as others do.
        """
        start = config.group_start_epoch
        last = max((s for s in self.starts if s < config.schedule.epochs), default=0)
        return last if start is None else start


def open_trunks(place: str | None, starts: frozenset[int], elsewhere: Locks) -> TrunkStore | None:
    """The trunks at `place`, a folder or URI; None without one.

    Locks are files beside the trunks, or `elsewhere` if the trunks are in a bucket.

    Raises:
        StorageError: the place cannot be used.
    """
    if place is None:
        return None
    store = Folder(place)
    if not store.is_local:
        return TrunkStore(store.uri, starts, elsewhere)
    folder = Path(store.uri)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise StorageError(f"{place}: {nearest} is not a writable folder")
    return TrunkStore(store.uri, starts, FileLocks(store.uri))
