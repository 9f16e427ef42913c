"""Check that the nodes of a cluster share a folder."""

from __future__ import annotations

import secrets
from typing import Any

import ray
from ray.exceptions import RayTaskError

from conr_ray.errors import NotShared, StorageError, UserError, last_line
from conr_ray.scaling.nodes import Nodes, alive_nodes, on_each
from conr_ray.storage.files import Folder


def check_storage(directory: Folder, *, more_to_come: bool) -> None:
    """Check that all nodes of the connected cluster share a folder with this process.

    A single node needs no shared folder, unless `more_to_come`.

    Args:
        directory: the folder; test files are written to it, read and deleted.
        more_to_come: the cluster starts nodes on demand.

    Raises:
        NotShared: a node does not see the folder, or its files do not arrive here.
        StorageError: a node cannot read or write.
    """
    nodes = alive_nodes()
    if not is_for_one_node(directory, nodes, more_to_come):
        exchange(directory, nodes)


def is_for_one_node(directory: Folder, nodes: Nodes, more_to_come: bool) -> bool:
    """Whether a local folder is enough, since there is one node.

    Raises:
        NotShared: it is enough now, but more nodes will come.
    """
    if not directory.is_local or len(nodes) > 1:
        return False
    if more_to_come:
        raise NotShared(f"{directory.uri} is on this node, nodes that start later would not see it")
    return True


def exchange(directory: Folder, nodes: Nodes) -> None:
    """Write a file that each node reads, and read a file that each node writes.

    Raises:
        NotShared, StorageError: as `check_storage` raises them.
    """
    try:
        found = _read_and_written(directory, nodes)
    except (OSError, UserError) as error:
        raise StorageError(f"{directory.uri} cannot be used: {last_line(error)}") from None
    if failed := [name for name, answer in found.items() if isinstance(answer, Exception)]:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        cause = found[failed[0]]
        if isinstance(cause, RayTaskError):
            # Without the traceback of that node's process.
            cause = cause.cause
        raise StorageError(
            f"node {failed[0]}{others} cannot use {directory.uri}: {last_line(cause)}"
        )
    if blind := [name for name, (read, _) in found.items() if not read]:
        raise NotShared(f"node {', '.join(blind)} does not see {directory.uri}")
    if apart := [name for name, (_, written) in found.items() if not written]:
        raise NotShared(f"files of node {', '.join(apart)} in {directory.uri} do not arrive here")


def _read_and_written(directory: Folder, nodes: Nodes) -> dict[str, Any]:
    """For each node, whether it reads this process's file, and whether its own file arrives here.

    For a node that fails or does not answer, an exception instead of the two.
    """
    name, token = f".seen-{secrets.token_hex(4)}", secrets.token_hex(8)

    def read_and_write(uri: str) -> bool:
        there = Folder(uri)
        if there.read_text(name) != token:
            # Not the shared folder: leave nothing in it.
            return False
        there.write_text(f"{name}-{ray.get_runtime_context().get_node_id()}", token)
        return True

    answers = {node_name: f"{name}-{node['NodeID']}" for node_name, node in nodes.items()}
    directory.write_text(name, token)
    try:
        found = on_each(nodes, read_and_write, directory.uri)
        for node_name, read in found.items():
            if not isinstance(read, Exception):
                written = directory.read_text(answers[node_name]) == token
                found[node_name] = (read, written)
    finally:
        for file in (name, *answers.values()):
            if directory.has(file):
                directory.delete_file(file)
    return found
