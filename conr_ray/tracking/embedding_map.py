"""2-D maps of embeddings. Shapes: m samples, d width."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float32]

# About, for t-SNE on one core. Half of openTSNE's default number of steps gives equal maps.
TSNE_S_PER_SAMPLE = 1.5e-3
_STEPS = {"early_exaggeration_iter": 100, "n_iter": 250}
_PERPLEXITY = 30
_FEWEST = 10


def map_2d(embeddings_md: Points) -> Points:
    """Positions of the samples on a t-SNE map that keeps neighbours close, (m, 2).

    Deterministic. Distances between groups mean little. With fewer than 10 samples, or a width
    of 1, it is `plane_2d`.
    """
    if len(embeddings_md) < _FEWEST or embeddings_md.shape[1] < 2:
        return plane_2d(embeddings_md)
    import openTSNE

    # Perplexity is at most a third of the samples.
    perplexity = min(_PERPLEXITY, (len(embeddings_md) - 1) / 3)
    tsne = openTSNE.TSNE(perplexity=perplexity, random_state=0, n_jobs=1, **_STEPS)
    return np.asarray(tsne.fit(embeddings_md), np.float32)


def plane_2d(embeddings_md: Points) -> Points:
    """Positions of the samples along the first two principal components, (m, 2); fast."""
    if len(embeddings_md) < 2:
        return np.zeros((len(embeddings_md), 2), np.float32)
    from sklearn.decomposition import PCA

    width = min(2, *embeddings_md.shape)
    found = PCA(width, random_state=0).fit_transform(embeddings_md)
    return np.pad(found, ((0, 0), (0, 2 - width))).astype(np.float32)
