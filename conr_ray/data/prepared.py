"""Find decoded copies by the config they were made from; nothing is fetched or decoded."""

from __future__ import annotations

import json
from pathlib import Path

from conr_ray.config import DataConfig
from conr_ray.data.cache import default_cache_dir
from conr_ray.data.store import DataSet, _load
from conr_ray.data.subset import BESIDE_THE_COPY, chosen_part
from conr_ray.storage.sealed import Damaged


def prepared_data(config: DataConfig, cache_dir: Path | None = None) -> DataSet | None:
    """The samples of `config` from the newest copy made by `open_data`; None if there is none.

    Unlike `open_data` it does not check whether the source has changed or still exists.

    Raises:
        UserError: `data.limit` exceeds the number of samples, or `data.imbalance` finds no labels.
    """
    wanted = config.model_dump(mode="json", exclude=BESIDE_THE_COPY)
    if config.source == "auto":
        # What was there decided.
        del wanted["source"]
    root = default_cache_dir() if cache_dir is None else cache_dir
    for path in sorted(root.glob("*/meta.json"), key=_written_at, reverse=True):
        try:
            made_of = json.loads(path.read_text())["source"]
            if any(made_of.get(name) != value for name, value in wanted.items()):
                continue
            images = _load(path.parent)
        # Another version's copy, one being deleted, or a damaged one, which may hold any JSON.
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError, Damaged):
            continue
        return chosen_part(images, config)
    return None


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
