"""A link of a given rate and delay between two hosts of a sandbox, in user space.

Each host has its end as a TUN device; a process carries packets from one to the other. The kernel's
own means for a delay, netem, is missing on many machines.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clusters.namespaces import Host

INTERFACE = "link0"
ADDRESSES = ("10.78.0.1", "10.78.0.2")
# As of instances in one VPC of AWS.
_MTU = 9001
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000


@contextmanager
def slow_link(hosts: tuple[Host, Host], mbit_per_s: float, delay_ms: float) -> Iterator[None]:
    """Link two hosts: INTERFACE on each, with one of ADDRESSES.

    Both directions have the rate, and the delay is that from one host to the other.
    """
    ends = [_open_tun(f"tun{number}") for number in range(2)]
    for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
        host.take_interface(f"tun{number}", INTERFACE)
        done = host.run(
            f"ip link set {INTERFACE} mtu {_MTU} txqueuelen 10000 up && "
            f"ip addr add {address}/24 dev {INTERFACE}"
        )
        assert done.returncode == 0, done.stderr
    process = multiprocessing.get_context("fork").Process(
        target=_carry, args=(ends, mbit_per_s * 1e6 / 8, delay_ms / 1e3), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()
        for end in ends:
            os.close(end)


def _open_tun(name: str) -> int:
    """A TUN device in this thread's network; what its file gives are packets that it sends."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
    return end


def _carry(ends: list[int], bytes_per_s: float, delay_s: float) -> None:
    """Carry packets both ways for ever."""
    # Before all that computes: packets wait for the link, not for a core.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    arrivals: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    free_at = [0.0, 0.0]
    while True:
        dues = [queue[0][0] for queue in arrivals if queue]
        wait_s = max(0.0, min(dues) - time.perf_counter()) if dues else None
        readable, _, _ = select.select(ends, [], [], wait_s)
        now = time.perf_counter()
        for sender, end in enumerate(ends):
            while end in readable:
                try:
                    packet = os.read(end, 65536)
                except BlockingIOError:
                    break
                free_at[sender] = max(now, free_at[sender]) + len(packet) / bytes_per_s
                arrivals[sender].append((free_at[sender] + delay_s, packet))
            queue = arrivals[sender]
            while queue and queue[0][0] <= now:
                os.write(ends[1 - sender], queue.popleft()[1])
