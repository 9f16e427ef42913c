"""The metrics of a run, a column each in metrics.parquet: their names and what they mean."""

from __future__ import annotations

AGREEMENT_WITH_LABELS = {
    "acc": "share of samples in the cluster that matches their class best, one cluster a class",
    "nmi": "normalised mutual information of clusters and classes",
    "ari": "adjusted Rand index of clusters and classes",
}
LABEL_FREE_SCORES = {
    "label_free": "mean of the four scores below",
    "silhouette": "how much nearer samples are to their own centre than to the next one",
    "view_agreement": "information that clusters of a sample and of it in another light share",
    "neighbor_consistency": "information that clusters of a sample and of its neighbours share",
    "restart_agreement": "information that clusters of k-means from two random starts share",
}
TRAINING = {
    "loss": "mean over the epoch's steps",
    "neighbor_purity": "share of the neighbours trained with that have the sample's label",
    "kept": "share of the samples that the group loss kept",
    "fraction": "share of the global batch that the group loss keeps",
    "bank_share": "share of the neighbours trained with that come from the bank",
    "neighbor_age": "mean age of those, in steps",
    "lr": "learning rate of the encoder after the epoch's last step",
    "predictor_lr": "learning rate of the predictor, likewise",
    "momentum": "of the target network, likewise",
}
WHOLE_DATA = {
    "data_purity_contextual": "share of contextual neighbours in all data with the sample's label",
    "data_purity_euclidean": "share of Euclidean neighbours in all data with the sample's label",
}
TIMES = {
    "train_time_s": "seconds since epoch 0, those of the trunk included",
    "epoch_time_s": "seconds of the epoch",
    "discovery_time_s": "seconds of a step in which neighbours were found, mean over the epoch",
    "images_per_s": "images trained with in a second",
}

# What a search can optimise: what counts agreement with labels, what needs none, and what a run
# costs.
LABELLED_METRICS = (*AGREEMENT_WITH_LABELS, "neighbor_purity")
LABEL_FREE_METRICS = (*LABEL_FREE_SCORES, "loss")
COST_METRICS = ("train_time_s",)
MADE_SMALL = ("loss", *COST_METRICS)

MEANINGS = {**AGREEMENT_WITH_LABELS, **LABEL_FREE_SCORES, **TRAINING, **WHOLE_DATA, **TIMES}
