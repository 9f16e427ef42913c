"""Importing this loads the compiled loops and what training uses first: for forked processes."""

from __future__ import annotations

import torch

from conr_ray.method.neighbors import rough_products
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood

_threads = torch.get_num_threads()
# A process with running threads is not one to fork.
torch.set_num_threads(1)
_route = rough_products._bfloat16_is_faster
for _bfloat16 in (True, False):
    rough_products._bfloat16_is_faster = lambda faster=_bfloat16: faster
    for _kind in ("contextual", "euclidean"):
        _bank = MemoryBank(9, 4, 5, Neighborhood(_kind, 3, 2, 3))
        for _ in range(4):
            _keys = [torch.nn.functional.normalize(torch.randn(5, 4)) for _ in range(2)]
            _bank.find(_keys, torch.randperm(12)[:5])
rough_products._bfloat16_is_faster = _route
torch.manual_seed(torch.default_generator.initial_seed())
torch.set_num_threads(_threads)
