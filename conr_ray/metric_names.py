"""The metrics of a run, one column each in metrics.parquet: names and meanings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

AGREEMENT_WITH_LABELS = {
    "acc": "share of samples in the cluster matched to their class, one cluster per class",
    "nmi": "normalised mutual information of clusters and classes",
    "ari": "adjusted Rand index of clusters and classes",
}
BALANCED = {"balanced_acc": "ACC as the mean over classes, so that rare ones count as much"}
# The first is the one to judge by: see docs/label_free.md.
LABEL_FREE_SCORES = {
    "neighbor_consistency": "mutual information of the clusters of samples and their neighbours",
    "label_free": "mean of the silhouette and of the agreement of views, neighbours and starts",
    "silhouette": "how much closer samples are to their own centre than to the next nearest",
    "view_agreement": "mutual information of the clusters of samples and their perturbed copies",
    "restart_agreement": "mutual information of clusters from two random starts",
    "neighbor_stability": "share of neighbours that are in the sample's cluster, mean of clusters",
}
SPREAD = {
    "effective_rank": "number of directions that the embeddings use; 1 if they coincide",
    "mean_cosine": "mean cosine of two samples' embeddings; 1 if they coincide",
    "smallest_share": "share of the samples that are in the smallest cluster; 0 if one is empty",
}
TRAINING = {
    "loss": "mean over the epoch's steps",
    "neighbor_purity": "share of the neighbours in the loss that have the sample's label",
    "kept": "share of the samples that the group loss kept",
    "fraction": "scheduled value of kept",
    "bank_share": "share of the neighbours in the loss that come from the bank",
    "neighbor_age": "mean age of the neighbours from the bank, in steps",
    "lr": "learning rate of the encoder in the epoch's last step",
    "predictor_lr": "learning rate of the predictor in the epoch's last step",
    "momentum": "momentum of the target network in the epoch's last step",
}
WHOLE_DATA = {
    "data_purity_contextual": "share of contextual neighbours in all data with the sample's label",
    "data_purity_euclidean": "share of Euclidean neighbours in all data with the sample's label",
}
TIMES = {
    "train_time_s": "seconds since epoch 0, including those of the trunk",
    "epoch_time_s": "seconds of the epoch",
    "discovery_time_s": "seconds per step spent finding neighbours, epoch mean; on CPUs only",
    "images_per_s": "images trained on per second",
}

# What a search can optimise: agreement with labels, label-free scores, and the cost of a run.
LABELLED_METRICS = (*AGREEMENT_WITH_LABELS, *BALANCED, "neighbor_purity")
LABEL_FREE_METRICS = (*LABEL_FREE_SCORES, "loss")
COST_METRICS = ("train_time_s",)
MADE_SMALL = ("loss", *COST_METRICS)

# Least and greatest value, whatever the embeddings are.
RANGES = {
    **dict.fromkeys(
        (*AGREEMENT_WITH_LABELS, *BALANCED, *LABEL_FREE_SCORES, *WHOLE_DATA), (0.0, 1.0)
    ),
    "ari": (-0.5, 1.0),
    "label_free": (-0.25, 1.0),
    "silhouette": (-1.0, 1.0),
    "effective_rank": (1.0, math.inf),
    "mean_cosine": (-1.0, 1.0),
    "smallest_share": (0.0, 1.0),
}

MEANINGS = {
    **AGREEMENT_WITH_LABELS,
    **BALANCED,
    **LABEL_FREE_SCORES,
    **SPREAD,
    **TRAINING,
    **WHOLE_DATA,
    **TIMES,
}


def headline(figures: Mapping[str, Any], first: Iterable[str] = ()) -> str:
    """The known ones of `first`, the agreement with labels and the main label-free score."""
    names = dict.fromkeys([*first, *AGREEMENT_WITH_LABELS, next(iter(LABEL_FREE_SCORES))])
    known = ((name, figures.get(name)) for name in names)
    return "  ".join(f"{name.upper()} {value:.4f}" for name, value in known if value is not None)
