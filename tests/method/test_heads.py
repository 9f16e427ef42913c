"""Clustering heads, and neighbours that are sought in all data."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from conr_ray.method.clustering.pair_losses import (
    cut_loss,
    information_loss,
    joint_probabilities,
)
from conr_ray.method.frameworks.base import Step
from conr_ray.method.frameworks.heads import Config, Framework
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.neighbors.pool import Neighborhood
from conr_ray.method.networks import Identity
from conr_ray.method.stages.pairs import PairStage
from tests.method.naive_reranking import unit_rows

NUM_CLUSTERS = 4


def certain(clusters_b: Tensor) -> Tensor:
    """Probabilities (b, 1, c) of a head that has no doubts."""
    return one_hot(clusters_b, NUM_CLUSTERS).float()[:, None]


def together(clusters_b: Tensor) -> Tensor:
    """Joint probabilities of pairs that are in the same of these clusters."""
    return joint_probabilities(certain(clusters_b), certain(clusters_b))


def step_of(num_rows: int, key: int = 3, first: int = 0) -> Step:
    ids = torch.arange(first, first + num_rows)
    return Step(0, 10, 0, key, torch.arange(num_rows), ids)


def test_pairs_in_one_of_equal_clusters_have_all_information() -> None:
    clusters_b = torch.arange(40) % NUM_CLUSTERS
    for balance in (1.0, 2.0):
        loss = float(information_loss(together(clusters_b), balance))
        # Of the joint distribution, c entries of 1 / c.
        least = -2 * balance * math.log(NUM_CLUSTERS) + math.log(NUM_CLUSTERS)
        assert loss == pytest.approx(least, abs=1e-4)


def test_the_loss_is_minus_the_mutual_information_of_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(50, 3, 4, generator=generator).softmax(2) for _ in range(2))
    joint_hcc = torch.stack([first[:, h].T @ second[:, h] / 50 for h in range(3)])
    joint_hcc = (joint_hcc + joint_hcc.transpose(1, 2)) / 2
    rows_hc = joint_hcc.sum(2)
    ratio_hcc = joint_hcc / (rows_hc[:, :, None] * rows_hc[:, None])
    information_h = (joint_hcc * ratio_hcc.log()).sum((1, 2))
    torch.testing.assert_close(
        information_loss(joint_probabilities(first, second), 1.0), -information_h
    )


@pytest.mark.parametrize("clusters", [[0] * 40, [0] * 20 + [1] * 20])
def test_fewer_clusters_cost_more(clusters: list[int]) -> None:
    even = together(torch.arange(40) % NUM_CLUSTERS)
    fewer = together(torch.tensor(clusters))
    assert float(information_loss(fewer, 1.0)) > float(information_loss(even, 1.0))
    assert float(cut_loss(fewer)) > float(cut_loss(even)) + 0.9


def test_the_cut_does_not_care_how_large_clusters_are() -> None:
    even = together(torch.arange(40) % NUM_CLUSTERS)
    unequal = together(torch.tensor([0] * 34 + [1] * 3 + [2] * 2 + [3]))
    assert float(cut_loss(even)) == pytest.approx(-NUM_CLUSTERS, abs=1e-4)
    assert float(cut_loss(unequal)) == pytest.approx(-NUM_CLUSTERS, abs=1e-4)
    assert float(information_loss(unequal, 1.0)) > float(information_loss(even, 1.0)) + 0.5


def test_the_cut_is_what_leaves_each_cluster() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.rand(30, 2, 3, generator=generator).softmax(2) for _ in range(2))
    for h, loss in enumerate(cut_loss(joint_probabilities(first, second)).tolist()):
        stays = 0.0
        for c in range(3):
            pairs = [(float(first[b, h, c]), float(second[b, h, c])) for b in range(30)]
            both = sum(one * other for one, other in pairs)
            # Whichever of the two samples of a pair comes first.
            volume = sum(one + other for one, other in pairs) / 2
            stays += both / volume
        assert loss == pytest.approx(-stays, rel=1e-5)


def test_pairs_that_are_not_kept_do_not_count() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(30, 2, 4, generator=generator).softmax(2) for _ in range(2))
    kept_b = torch.arange(30) < 20
    whole = joint_probabilities(first[:20], second[:20])
    torch.testing.assert_close(joint_probabilities(first, second, kept_b), whole)


def test_a_partner_is_one_of_the_neighbours_each_as_often() -> None:
    rows_nd = unit_rows(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    stage = PairStage("euclidean")
    stage.find(DataNeighbors(Neighborhood("euclidean", 1, 1, 5), lambda: rows_nd, 60))
    cosines_nn = rows_nd @ rows_nd.T
    wanted_nk = cosines_nn.topk(5).indices
    counts_nn = torch.zeros(60, 60)
    for key in range(400):
        partners_n = stage.paired(step_of(60, key)).partner_ids_n
        assert partners_n is not None
        counts_nn[torch.arange(60), partners_n] += 1
    drawn_nk = counts_nn.gather(1, wanted_nk)
    assert int(drawn_nk.sum()) == 60 * 400
    # 80 of 400 on average; the deviation is 8.
    assert float(drawn_nk.min()) > 40 and float(drawn_nk.max()) < 120


def test_contextual_partners_are_those_of_the_reranking() -> None:
    from conr_ray import contextual_neighbors

    rows_nd = unit_rows(torch.randn(80, 6, generator=torch.Generator().manual_seed(2)))
    stage = PairStage("contextual")
    stage.find(DataNeighbors(Neighborhood("contextual", 12, 4, 6), lambda: rows_nd, 80))
    assert stage.neighbors_mk is not None
    _, wanted_nk = contextual_neighbors(rows_nd, k1=12, k2=4, k=6)
    assert torch.equal(stage.neighbors_mk.long(), wanted_nk)


def test_the_head_with_the_least_loss_gives_the_clusters() -> None:
    framework = Framework(Config(num_heads=3), Identity(5), 0, 0)
    framework.for_clusters(NUM_CLUSTERS)
    framework.mean_losses.copy_(torch.tensor([-1.0, -3.0, -2.0]))
    wanted_cd = framework.target_prototypes[1]
    torch.testing.assert_close(framework.cluster_centers, wanted_cd)
    torch.testing.assert_close(framework.cluster_centers.norm(dim=1), torch.ones(NUM_CLUSTERS))


@pytest.mark.parametrize("objective", ["information", "cut"])
def test_heads_find_groups_of_vectors_and_their_sizes_may_differ(
    objective: Literal["information", "cut"],
) -> None:
    torch.manual_seed(0)
    sizes = [120, 60, 40, 30]
    means = 4 * torch.eye(NUM_CLUSTERS, 6)
    classes_n = torch.repeat_interleave(torch.arange(NUM_CLUSTERS), torch.tensor(sizes))
    rows_nd = means[classes_n] + torch.randn(250, 6)
    rows_nd -= rows_nd.mean(0)
    framework = Framework(Config(objective=objective, num_heads=8, balance=1.0), Identity(6), 0, 0)
    framework.for_clusters(NUM_CLUSTERS)
    stage = PairStage("contextual", clusters_until=0)
    near = Neighborhood("contextual", 20, 5, 10)
    stage.find(DataNeighbors(near, lambda: unit_rows(rows_nd), 250))
    optimizer = torch.optim.SGD(framework.param_groups()[1].parameters, lr=8.0, momentum=0.9)
    for number in range(150):
        step = stage.paired(Step(number, 150, 0, number, torch.arange(250), torch.arange(250)))
        views = [rows_nd[step.sample_ids_n], rows_nd[step.partner_ids_n]]
        loss, figures = stage.loss(framework, framework(views, step), step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        framework.after_step(framework(views, step), step)
    clusters_n = (unit_rows(rows_nd) @ framework.cluster_centers.T).argmax(1)
    for cluster in range(NUM_CLUSTERS):
        members = classes_n[clusters_n == cluster]
        assert len(members) and float((members == members.mode().values).float().mean()) > 0.9
    assert len(set(clusters_n.tolist())) == NUM_CLUSTERS
    assert float(figures["kept"][0] / figures["kept"][1]) == 1


def test_neighbours_in_the_data_are_found_once_and_as_by_the_reranking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from conr_ray import contextual_neighbors
    from conr_ray.method.neighbors import data_neighbors

    rows_nd = unit_rows(torch.randn(80, 6, generator=torch.Generator().manual_seed(4)))
    searches = []

    def counted(embeddings: Tensor, **widths: Any) -> tuple[Tensor, Tensor]:
        searches.append(widths["k"])
        return contextual_neighbors(embeddings, **widths)

    monkeypatch.setattr(data_neighbors, "contextual_neighbors", counted)
    near = DataNeighbors(Neighborhood("contextual", 12, 4, 6), lambda: rows_nd, 80, least=11)
    wanted_nk = contextual_neighbors(rows_nd, k1=12, k2=4, k=11)[1]
    for k in (None, 11, 3):
        assert torch.equal(near.rows("contextual", k), wanted_nk[:, : k or 6])
    assert searches == [11]
    assert torch.equal(near.of("contextual", torch.tensor([5, 2]), 4), wanted_nk[[5, 2], :4])
    assert searches == [11]
    few = near.among(lambda: rows_nd[:9], 9)
    assert torch.equal(
        few.rows("contextual", 11), contextual_neighbors(rows_nd[:9], k1=9, k2=4, k=9)[1]
    )
    assert searches == [11, 9]
