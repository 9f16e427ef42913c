"""CoNR deep clustering on Ray: training, search and evaluation.

Public names are imported on first use: importing the package alone loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conr_ray.config import RunConfig, load_preset
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.trained_run import Placement, TrainedRun
    from conr_ray.errors import UserError
    from conr_ray.estimator import Clusterer
    from conr_ray.method.clustering.metrics import clustering_accuracy
    from conr_ray.method.neighbors.reranking import contextual_neighbors
    from conr_ray.python_search import search
    from conr_ray.search_result import SearchResult

__version__ = "0.1.0"
__all__ = [
    "Clusterer",
    "Placement",
    "RunConfig",
    "RunDirectory",
    "SearchResult",
    "TrainedRun",
    "UserError",
    "clustering_accuracy",
    "contextual_neighbors",
    "load_preset",
    "search",
]

_MODULES = {
    "Clusterer": "estimator",
    "Placement": "engine.trained_run",
    "RunConfig": "config",
    "RunDirectory": "engine.run_directory",
    "SearchResult": "search_result",
    "TrainedRun": "engine.trained_run",
    "UserError": "errors",
    "clustering_accuracy": "method.clustering.metrics",
    "contextual_neighbors": "method.neighbors.reranking",
    "load_preset": "config",
    "search": "python_search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
