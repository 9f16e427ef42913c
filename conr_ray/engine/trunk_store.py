"""Where trunks are kept, and what they are called: under a hash of all that shaped them.

That is the fields and images of a run, and the code that trains an instance stage.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from conr_ray.config import RunConfig
from conr_ray.engine.locks import FileLocks, Locks
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_fields import trunk_config
from conr_ray.errors import UserError

# Sections that say where things are and what is kept; images count by their fingerprint.
_NOT_SHAPING = ("data", "checkpoint", "tracking")
# Modules that train an instance stage, or make the figures in the rows of its epochs.
SHAPING_CODE = tuple(
    f"conr_ray.{name}"
    for name in (
        *("data.keyed_random", "data.pixels", "data.views"),
        *("engine.embedder", "engine.evaluation", "engine.label_free", "engine.loop"),
        *("engine.schedule", "engine.step_figures", "engine.training_state"),
        *("method.batch_norm", "method.collectives", "method.networks", "method.schedules"),
        *("method.stages.instance", "method.clustering.kmeans", "method.clustering.metrics"),
        *("method.neighbors.compiled", "method.neighbors.neighbor_lists"),
        *("method.neighbors.rank_keys", "method.neighbors.reranking"),
        *("method.neighbors.rough_products", "method.neighbors.search_kernels"),
    )
)


def trunk_name(config: RunConfig, fingerprint: str) -> str:
    """Equal for runs on equal images that share their instance stage, and for no others."""
    tree = trunk_config(config).model_dump(mode="json")
    shaping = {name: part for name, part in tree.items() if name not in _NOT_SHAPING}
    text = json.dumps([shaping, fingerprint, _code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _code_version() -> str:
    """Changes with the code that trains an instance stage, but not with its comments."""
    digest = hashlib.sha256()
    for name in SHAPING_CODE:
        # Found without being imported: a plan asks for names of trunks and needs no torch.
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        tree = ast.parse(Path(spec.origin).read_text())
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        for node in (node for node in ast.walk(tree) if isinstance(node, documented)):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class TrunkStore:
    """Trunks under one folder.

    Attributes:
        uri: of the folder, a local path or a URI such as s3://bucket/folder.
        starts: epochs at which runs may ask for a trunk: it keeps its checkpoints there.
        locks: keep those who may build trunks from building the same one.
    """

    uri: str
    starts: frozenset[int]
    locks: Locks

    def directory(self, name: str) -> RunDirectory:
        """The trunk called `name`."""
        return RunDirectory(f"{self.uri}/{name}")

    def epochs_trained(self, name: str) -> int | None:
        """Of the trunk called `name`; None where looking is not cheap, in a bucket."""
        trunk = self.directory(name)
        return len(trunk.metric_rows()) if trunk.is_local else None

    def fork_epoch(self, config: RunConfig) -> int:
        """The epoch at which a run of `config` leaves its trunk; 0 where it has none.

        One without a group stage follows the trunk as far as others do.
        """
        start = config.group_start_epoch
        last = max((s for s in self.starts if s < config.schedule.epochs), default=0)
        return last if start is None else start


def open_trunks(place: str | None, starts: frozenset[int], elsewhere: Locks) -> TrunkStore | None:
    """The trunks at `place`, a folder or URI; None without one.

    Locks lie with the trunks, or `elsewhere` where these are no files.

    Raises:
        UserError: the place cannot be used.
    """
    if place is None:
        return None
    store = RunDirectory(place)
    if not store.is_local:
        return TrunkStore(store.uri, starts, elsewhere)
    folder = Path(store.uri)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"--trunks {place}: {nearest} is no folder that can be written to")
    return TrunkStore(store.uri, starts, FileLocks(store.uri))
