"""Embedding by actors of Ray, which share the images of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conr_ray.data.store import open_data
from conr_ray.errors import RunFailed
from conr_ray.frozen import embedded
from conr_ray.prediction.ahead import OnRay
from conr_ray.scaling.cluster import connect, leave
from conr_ray.scaling.resources import ClusterOptions
from tests.frozen.conftest import frozen_config


@pytest.mark.slow
def test_actors_embed_what_one_process_embeds(tmp_path: Path) -> None:
    config = frozen_config(data__embedded_views=1, data__limit=None)
    images = open_data(config.data)
    alone = embedded(config, images, tmp_path / "alone")
    resources = connect(ClusterOptions(cpus_per_worker=1), 2)
    try:
        together = embedded(config, images, tmp_path / "together", OnRay(config, resources))
        assert together.stored_views is not None and alone.stored_views is not None
        np.testing.assert_allclose(together.rows, alone.rows, atol=1e-4)
        np.testing.assert_allclose(together.stored_views, alone.stored_views, atol=1e-4)
        # A node that finds other images does not embed them.
        others = frozen_config(data__embedded_views=1, data__limit=200)
        with pytest.raises(RunFailed, match="another node finds other images"):
            embedded(config, images, tmp_path / "others", OnRay(others, resources))
    finally:
        leave()
