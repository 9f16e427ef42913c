"""Linux namespaces for tests: a network with hosts of its own that nothing leaves, and that ends.

Sandbox     a network without a way out, a process tree and a view of mounts
Host        inside a sandbox: a name, addresses, processes, a home, /dev/shm and /tmp/ray of its
            own, and an SSH server

All processes of a sandbox end with the process that made it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from tests.waiting import HANG_S

TOOLS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "sudo")
# Who may log in to a host.
USERS = ("ubuntu", "conr")
# Of the sandbox itself, as its hosts see it.
GATEWAY = "10.77.0.1"
_NEW_NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc"]
_CLONE_NEWNET = 0x40000000
# Where Debian has sshd and ip, which a user's PATH leaves out.
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str | None:
    """Why no sandbox can be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install iproute2 openssh-server rsync sudo"
    tried = subprocess.run([*_NEW_NAMESPACES, "true"], check=False)
    return None if tried.returncode == 0 else "namespaces are not permitted here"


class _ArrowAtHome:
    """Keeps Arrow's threads in the network of the process while a thread of it is in another one.

    A thread is in the network in which it was started, and Arrow starts threads as it needs them:
    what it reads in a sandbox would leave some there, and S3 would not be reached by them later.
    """

    def __enter__(self) -> None:
        self._counts = pa.cpu_count(), pa.io_thread_count()
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        # One of each kind is started now.
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"x": [1, 2], "y": [1, 2]}), sink)
        with tempfile.NamedTemporaryFile() as file:
            file.write(sink.getvalue())
            file.flush()
            pq.read_table(file.name)

    def __exit__(self, *_: object) -> None:
        pa.set_cpu_count(self._counts[0])
        pa.set_io_thread_count(self._counts[1])


class Sandbox:
    """A network, process tree and mounts apart; this thread is in the network while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_hosts = 0

    def __enter__(self) -> Sandbox:
        # The first process of the tree reads from a pipe that only this process can write to. When
        # this one is gone, it ends, and the kernel ends the tree with it.
        self._keeper = subprocess.Popen(
            [*_NEW_NAMESPACES, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        self._inside = _descendant(self._keeper.pid, "cat")
        self._arrow = _ArrowAtHome()
        self._arrow.__enter__()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        network = os.open(f"/proc/{self._inside}/ns/net", os.O_RDONLY)
        _enter_network(network)
        os.close(network)
        ip("link set lo up")
        ip("link add hosts type bridge")
        ip(f"addr add {GATEWAY}/24 dev hosts")
        ip("link set hosts up")
        # What Ray notes about its clusters, for whoever starts them from here.
        notes = self.folder / "ray"
        notes.mkdir()
        mount = f"mkdir -p /tmp/ray && mount --bind {notes} /tmp/ray"
        self.run(["bash", "-c", mount], os.environ, self.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _enter_network(self._home)
        os.close(self._home)
        self._arrow.__exit__()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    def start(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in the sandbox; what it prints goes to `log`."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [*self._enter(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
            )

    def run(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
        """Run a command in the sandbox to its end; gives what it printed.

        Raises:
            AssertionError: it failed; the message is what it printed.
        """
        done = subprocess.run(
            [*self._enter(cwd), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
            # A job waits for more than one thing: nodes, processes, its own work.
            timeout=2 * HANG_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def add_host(
        self, addresses: Sequence[str], authorized_keys: str, variables: Mapping[str, str]
    ) -> Host:
        """Start a host.

        Args:
            addresses: the first is where its own connections come from.
            authorized_keys: public keys with which USERS may log in.
            variables: environment of whoever logs in.
        """
        self._num_hosts += 1
        # A worker gets as much of the cores as the tests that run beside it, and its threads do not
        # spin while they wait for those of other hosts.
        variables = {"RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "PASSIVE", **variables}
        return Host(self, f"host{self._num_hosts}", addresses, authorized_keys, variables)

    def _enter(self, cwd: Path = Path("/")) -> list[str]:
        return [*_enter_command(self._inside), f"--wd={cwd}", "--"]


class Host:
    """A machine of the sandbox. It shares the file system but for the places named above.

    Its users are root by another name: only root may mount, and no user is added to this machine.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        name: str,
        addresses: Sequence[str],
        authorized_keys: str,
        variables: Mapping[str, str],
    ) -> None:
        self.name = name
        self.addresses = list(addresses)
        self.folder = sandbox.folder / name
        self.home = self.folder / "home"
        self.ray = self.folder / "ray"
        for folder in (self.home, self.ray):
            folder.mkdir(parents=True)
        self._write_files(authorized_keys, variables)
        self._process = sandbox.start(
            [*_NEW_NAMESPACES, "bash", "-euc", self._boot()],
            self.folder / "sshd.log",
        )
        self._first = _descendant(self._process.pid, "bash")
        ip(f"link add {name} type veth peer name eth0 netns {self._first}")
        ip(f"link set {name} master hosts up")
        for address in self.addresses:
            ip(f"route add {address}/32 dev hosts")
        # The boot script ends by becoming it.
        _descendant(self._process.pid, "sshd")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a bash script on the host, as its user does who is logged in."""
        return subprocess.run(
            self._logged_in(script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a bash script on the host; what it prints goes to `log`."""
        with log.open("wb") as file:
            return subprocess.Popen(
                self._logged_in(script),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def take_interface(self, device: str, name: str) -> None:
        """Move a network device of this thread's network into the host, where it has a new name."""
        ip(f"link set {device} netns {self._first} name {name}")

    def _logged_in(self, script: str) -> list[str]:
        script = f". ~/.bashrc; {script}"
        # Tests may run in the background, where shells have Ctrl-C ignored.
        clean = ["env", "-i", "--default-signal=INT", f"HOME={self.home}"]
        shell = [*clean, "bash", "-c", script]
        return [*_enter_command(self._first), "--", *shell]

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Cut its power."""
        # The first process of a tree takes all others along, and its interface goes with them.
        os.kill(self._first, signal.SIGKILL)
        self._process.wait()
        for address in self.addresses:
            ip(f"route del {address}/32 dev hosts")

    def _write_files(self, authorized_keys: str, variables: Mapping[str, str]) -> None:
        exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
        (self.home / ".bashrc").write_text(exports)
        (self.folder / "authorized_keys").write_text(authorized_keys)
        # As in a cloud, a name means an address that others reach: gloo tells them its own.
        hosts = f"127.0.0.1 localhost\n{self.addresses[0]} {self.name}\n"
        (self.folder / "hosts").write_text(hosts)
        users = "".join(f"{name}:x:0:0::{self.home}:/bin/bash\n" for name in USERS)
        (self.folder / "passwd").write_text(users + Path("/etc/passwd").read_text())
        # sudo asks whether the account is valid. As in a cloud image, it has no password and may do
        # anything.
        names = ("root", *USERS)
        (self.folder / "shadow").write_text("".join(f"{name}:*:20000::::::\n" for name in names))
        sudoers = self.folder / "sudoers"
        sudoers.write_text("".join(f"{name} ALL=(ALL) NOPASSWD: ALL\n" for name in USERS))
        sudoers.chmod(0o440)
        key = self.folder / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        settings = {
            "HostKey": key,
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "prohibit-password",
            "PidFile": "none",
        }
        lines = (f"{name} {value}\n" for name, value in settings.items())
        (self.folder / "sshd_config").write_text("".join(lines))

    def _boot(self) -> str:
        source = self.addresses[0]
        return f"""
            export PATH={_PATH}
            mkdir -p /tmp/ray /run/sshd
            mount --bind {self.ray} /tmp/ray
            hostname {self.name}
            mount --bind {self.folder}/hosts /etc/hosts
            mount --bind {self.folder}/passwd /etc/passwd
            mount --bind {self.folder}/shadow /etc/shadow
            mount --bind {self.folder}/sudoers /etc/sudoers
            mount -t tmpfs -o size=1g tmpfs /dev/shm
            until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
            ip link set lo up
            ip link set eth0 up
            for address in {" ".join(self.addresses)}; do ip addr add $address/32 dev eth0; done
            ip route add {GATEWAY} dev eth0 src {source}
            ip route add default dev eth0 src {source}
            exec $(command -v sshd) -D -e -f {self.folder}/sshd_config
            """


def ip(arguments: str) -> None:
    """Call `ip` in this thread's network."""
    subprocess.run(["ip", *arguments.split()], check=True, env={**os.environ, "PATH": _PATH})


def _descendant(pid: int, name: str) -> int:
    """The process called `name` that `pid` started, through others of one child each."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        # A process may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            current = pid
            while children := _children(current):
                current = children[0]
                if Path(f"/proc/{current}/comm").read_text().strip() == name:
                    return current
        time.sleep(0.02)
    raise TimeoutError(f"no {name} below process {pid}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _enter_command(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--pid", "--mount", "--uts"]


def _enter_network(descriptor: int) -> None:
    """Put this thread, and what it starts from now on, into another network."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
