"""The table of a clusterer in notebooks."""

from __future__ import annotations

import re

import numpy as np

from conr_ray.estimating.pictures import as_html


def test_clusters_in_use_are_listed_by_size_and_junk_as_such() -> None:
    clusters_n = np.array([7, 7, 7, -1, -1, 2], np.int64)
    html = as_html("2 clusters", clusters_n, {})
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", html)
    assert rows == [("7", "3", "50.0%"), ("junk", "2", "33.3%"), ("2", "1", "16.7%")]


def test_of_many_clusters_the_smallest_are_counted() -> None:
    html = as_html("many", np.arange(64, dtype=np.int64), {})
    assert html.count("<tr><td>") == 50 and "14 smaller clusters are not shown" in html
