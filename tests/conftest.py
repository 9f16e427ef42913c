"""What all tests share: one cache of decoded images, one thread, no W&B."""

from __future__ import annotations

import functools
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs as pafs
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer
from xdist.scheduler import LoadScopeScheduling

from tests.gloo_workers import start_server

# Where several processes run tests, those of a file are run by one of them, but for these.
#
# Each test of these makes all that it needs, and takes long.
_APART = ("scaling/test_nodes.py", "search/test_killed_searches.py")
# Those of a folder share what takes long to make, runs and a browser, or bring up clusters of many
# processes, which are not to be beside each other.
_TOGETHER = ("clusters", "reporting")
# In these, files whose tests share one server and one pool of workers.
_GLOO = ("engine", "frameworks", "method")
# Begun first.
_FIRST = (
    "clusters",
    "search/test_search.py",
    "tests/search/test_killed_searches.py",
    "tests/scaling/test_nodes.py",
    "scaling",
    "reporting",
)
_HERE = Path(__file__).parent
# Whoever starts the tests in the background has Ctrl-C ignored, also by what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Scheduling(LoadScopeScheduling):
    """Who runs what, in the order of the tests. xdist's own groups fail with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if (name := group(nodeid)) is None else name


@functools.cache
def group(nodeid: str) -> str | None:
    """Tests of one name are run by one process, one after another; None is one alone."""
    file = (_HERE.parent / nodeid.partition("::")[0]).relative_to(_HERE)
    if file.as_posix() in _APART:
        return None
    if file.parts[0] in _GLOO and "from tests.gloo_workers import" in (_HERE / file).read_text():
        return "gloo"
    return file.parts[0] if file.parts[0] in _TOGETHER else file.as_posix()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes longest begins first: what is left at the end is short, for one process or two.
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    name = group(item.nodeid) or item.nodeid
    turns = [turn for turn, begin in enumerate(_FIRST) if name.startswith(begin)]
    slow = item.get_closest_marker("slow") is not None
    return turns[0] if turns else len(_FIRST) + (not slow)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if group(item.nodeid) == "gloo":
        # What is slow to import there is imported beside the first tests.
        start_server()


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONR_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's processes get as much of the cores as the tests that run beside them.
        patch.setenv("RAY_worker_niceness", "0")
        # Threads that spin while they wait take the cores from what they wait for.
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield


# The last bits of a result depend on the number of threads, and commands set it: it is set for the
# fixtures of a module, and again for each test.
@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_fixtures() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket on an S3 server of this machine, for all processes started after."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # The servers of a process share what they keep.
    name = f"bucket-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=["local", "file_uri", "object_store"])
def any_storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty folder, by path, by URI and in an object store: fsspec's, which is in memory."""
    if request.param == "local":
        return str(tmp_path / "storage")
    if request.param == "file_uri":
        return f"file://{tmp_path}/storage"
    store = MemoryFileSystem(skip_instance_cache=True)
    monkeypatch.setattr(store, "store", {})
    monkeypatch.setattr(store, "pseudo_dirs", [""])
    files = pafs.PyFileSystem(pafs.FSSpecHandler(store))

    class Registry:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return files, uri.partition("://")[2]

    monkeypatch.setattr(pafs, "FileSystem", Registry)
    return "memory://bucket/storage"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real image sets beside the checkout; the test is skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real image sets are not here")
    return folder
