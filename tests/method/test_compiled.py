from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import pytest

from conr_ray.method.compiled import compiled, compiled_any_order


@pytest.mark.parametrize("way", [compiled, compiled_any_order])
def test_loops_are_compiled_where_no_cache_can_be_written(way: Callable[..., Any]) -> None:
    scope: dict[str, Any] = {}
    # Neither beside such a file nor for it in the user's folder numba has a cache.
    exec(compile("def twice(x):\n    return 2 * x\n", "nowhere.py", "exec"), scope)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(scope["twice"])
    assert way(scope["twice"])(3) == 6
