"""Settings of the tests of the method."""

from __future__ import annotations

import pytest
import torch

from tests.gloo_workers import run_workers, start_server


def pytest_collection_finish(session: pytest.Session) -> None:
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    if any(getattr(module, "run_workers", None) is run_workers for module in modules):
        start_server()


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
