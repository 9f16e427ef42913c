"""Scores that need no labels: what raises them, and what does not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from conr_ray.config import ViewsConfig, build
from conr_ray.data.inputs import Images
from conr_ray.data.views import Views
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, found_again
from conr_ray.engine.label_free import label_free_scores
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.metric_names import LABEL_FREE_SCORES

NUM_IMAGES, SIZE = 400, 8
CPU = torch.device("cpu")


class Network(nn.Module):
    """Groups images by which half is the brighter one, or by how bright they are."""

    def __init__(self, sees: str) -> None:
        super().__init__()
        self.sees = sees

    def embed(self, images: Tensor) -> Tensor:
        rows = images.mean((1, 3))
        if self.sees == "nothing":
            return normalize(torch.ones(len(images), 2))
        if self.sees == "brightness":
            angle = np.pi * rows.mean(1)
        else:
            top, bottom = rows[:, : SIZE // 2].mean(1), rows[:, SIZE // 2 :].mean(1)
            angle = np.pi * (top > bottom).float()
        # As in a trained network, the other property shows a little.
        return normalize(torch.stack([angle.cos(), angle.sin(), 0.1 * rows.mean(1)], 1))


def _scores(sees: str, **views: float) -> dict[str, float]:
    rng = np.random.default_rng(0)
    dark = np.where(np.arange(NUM_IMAGES) % 3 == 0, 0.25, 0.7)
    halves = np.full((NUM_IMAGES, SIZE, SIZE), 0.75)
    upper = rng.random(NUM_IMAGES) < 0.5
    halves[upper, : SIZE // 2] = 1
    halves[~upper, SIZE // 2 :] = 1
    light = (dark + rng.uniform(-0.1, 0.1, NUM_IMAGES))[:, None, None]
    images = (255 * light * halves).round().astype(np.uint8)[:, None]
    embedder = Embedder(
        Network(sees),  # type: ignore[arg-type]
        Images(
            images,
            Views(ViewsConfig(size=SIZE, **views), [0.0], [1.0]),
            CPU,
            on_device=False,
        ),
        Acceleration(CPU),
    )
    embeddings = embedder.plain(torch.arange(NUM_IMAGES))
    found = spherical_kmeans(embeddings, NUM_IMAGES, 2, seed=0, restarts=3)
    lengths = torch.ones(2)
    centers = found.centers_cd
    again = partial(found_again, build({"data": {"source": "digits"}}), 2)
    clustering = DataClustering(embeddings, found.labels_b, centers, lengths, centers, again)
    return label_free_scores(
        embeddings,
        clustering.clusters_n,
        clustering.centers_cd,
        *clustering.spread_sample(300),
        embedder,
        key=1,
        cluster=clustering.again,
    )


def test_groups_that_light_decides_score_low_though_they_are_clear() -> None:
    by_shape, by_light = _scores("shape"), _scores("brightness")
    assert by_light["silhouette"] > 0.8
    assert by_light["restart_agreement"] > 0.9
    for name in ("view_agreement", "neighbor_consistency"):
        assert by_shape[name] > 0.9
        assert by_light[name] < 0.6


def test_a_collapse_scores_low() -> None:
    scores = _scores("nothing")
    shared = ("view_agreement", "neighbor_consistency", "restart_agreement")
    assert [scores[name] for name in shared] == pytest.approx([0, 0, 0], abs=1e-6)
    assert set(scores) == set(LABEL_FREE_SCORES)


def test_the_views_of_a_run_do_not_change_its_scores() -> None:
    assert _scores("shape", jitter_probability=0, brightness=0.1) == _scores("shape", noise=0.3)
