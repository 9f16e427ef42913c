"""Embeddings as points of a plane that can be looked at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA


def map_2d(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Positions of m embeddings (m, d) in a plane, (m, 2): their two principal components."""
    found = PCA(n_components=2, random_state=0).fit_transform(embeddings)
    return np.asarray(found, np.float32)
