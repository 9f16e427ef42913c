"""Decoded copies found by what they were made of; nothing is fetched, decoded or compared."""

from __future__ import annotations

import json
from pathlib import Path

from conr_ray.config import DataConfig
from conr_ray.data.store import DataSet, _load, _subset, default_cache_dir

# Fields that say which images are used, and where, but not what is decoded.
_BESIDE_THE_COPY = {"limit", "placement", "download"}


def prepared_data(config: DataConfig, cache_dir: Path | None = None) -> DataSet | None:
    """The images of `config` as `open_data` has last left them; None where it has not yet.

    Unlike `open_data` it does not look whether the source has changed since, nor whether it is
    still there.

    Raises:
        UserError: `data.limit` exceeds the images.
    """
    wanted = config.model_dump(mode="json", exclude=_BESIDE_THE_COPY)
    root = default_cache_dir() if cache_dir is None else cache_dir
    found = sorted(root.glob("*/meta.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            made_of = json.loads(path.read_text())["source"]
            if any(made_of.get(name) != value for name, value in wanted.items()):
                continue
            images = _load(path.parent)
        # Another version's copy, or one that is just being deleted.
        except (KeyError, ValueError, OSError):
            continue
        return images if config.limit is None else _subset(images, config.limit)
    return None
