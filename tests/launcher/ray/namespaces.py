"""Machines that are network namespaces of this one, joined by a bridge, and Ray clusters on them.

A machine is kept by one process of ours: namespaces, links and mounts end with the last process in
them. When its pipe from the test closes, however the test has ended, it kills all that runs in its
network namespace. Nothing has a name outside the namespaces, so that runs do not meet.
"""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.running import END_S

CLONE_NEWNET = 0x40000000
"""Source: linux/sched.h."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PORT = 6399
"""Of Ray's head."""
NO_TOKEN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's clusters have a token as soon as their user has had one made."""
TOOLS = ("ip", "unshare", "nsenter", "mount")
KEEP = """
import os, signal, sys
own = os.readlink("/proc/self/ns/net")
sys.stdout.write("kept\\n")
sys.stdout.flush()
sys.stdin.read()
left = True
while left:
    left = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != own or int(pid) in (os.getpid(), os.getppid()):
                continue
            if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
                os.kill(int(pid), signal.SIGKILL)
                left = True
        except OSError:
            pass
"""
"""What keeps a machine; a zombie is init's."""
LOOK = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
total, free = ray.cluster_resources(), ray.available_resources()
groups = ray.util.placement_group_table().values()
print(json.dumps({
    "alive": sum(node["Alive"] for node in ray.nodes()),
    "used": [name for name in ("CPU", "GPU") if free.get(name, 0) < total.get(name, 0)],
    "groups": [group["name"] for group in groups if group["state"] != "REMOVED"],
}))
"""


class Machine:
    """A network namespace and a mount namespace of its own.

    Attributes:
        address: IPv4, of its interface eth0.
        address_v6: The same in IPv6.
    """

    def __init__(self, number: int = 0) -> None:
        self.address, self.address_v6 = f"10.99.0.{number}", f"fd00:99::{number}"
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", sys.executable, "-c", KEEP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "kept\n"
        self._network = os.open(f"/proc/{self._keeper.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        """Of a process in it, for those who look at it from outside."""
        return self._keeper.pid

    def run(self, *command: str, **environment: str) -> str:
        """What a command says that runs in it; it must succeed."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--mount", *command],
            env=_without_ray() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts meanwhile, is in the network of the machine."""
        with open("/proc/thread-self/ns/net") as before:
            _enter(self._network)
            try:
                yield
            finally:
                _enter(before.fileno())

    def plug_into(self, switch: "Machine") -> None:
        """Gives it the interface eth0, with its addresses, and joins that to the others'."""
        port = f"port-{self.pid}"
        peer = ("peer", "name", "eth0", "netns", str(self.pid))
        switch.run("ip", "link", "add", port, "type", "veth", *peer)
        switch.run("ip", "link", "set", port, "master", "bridge", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "address", "add", f"{self.address_v6}/64", "dev", "eth0", "nodad")
        self.set_link("up")

    def set_link(self, state: str) -> None:
        """Plugs its cable in ("up") or out ("down"); addresses stay, as on a real machine."""
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down")
        self.run("ip", "link", "set", "eth0", state)

    def look_like_another(self, hidden: Path) -> None:
        """Gives it a boot id of its own, and hides a directory of the others."""
        self.run("mount", "-t", "tmpfs", "none", str(hidden))
        boot_id = hidden / "boot_id"
        self.run("sh", "-c", f"echo {uuid.uuid4()} > {boot_id}; mount --bind {boot_id} {BOOT_ID}")

    def processes(self) -> dict[int, str]:
        """What runs in it, keeper aside: command lines by pid."""
        found, own = {}, os.fstat(self._network).st_ino
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                inside = os.stat(f"/proc/{process.pid}/ns/net").st_ino == own
                if inside and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(process.cmdline()).strip()
        return {pid: line for pid, line in found.items() if pid not in (self.pid, os.getpid())}

    def close(self) -> None:
        """Ends all that runs in it, and itself with that."""
        os.close(self._network)
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait(END_S)


class Network:
    """Machines joined by a switch."""

    def __init__(self, num_machines: int) -> None:
        self.machines: list[Machine] = []
        self._switch = Machine()
        try:
            self._switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self._switch.run("ip", "link", "set", "bridge", "up")
            for number in range(1, num_machines + 1):
                machine = Machine(number)
                self.machines.append(machine)
                machine.plug_into(self._switch)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for machine in (*self.machines, self._switch):
            machine.close()


class Cluster:
    """Ray on the machines, started as a user would; the first has Ray's head.

    Attributes:
        address: host:port.
        runtime: Runtime directory for launchers on the head. The others do not see it.
    """

    def __init__(self, machines: Sequence[Machine], num_cpus: int, is_v6: bool = False) -> None:
        self.machines, self._is_v6 = machines, is_v6
        self._directory = tempfile.mkdtemp(prefix="fl")  # short, since socket paths are
        self.runtime = Path(self._directory, "run")
        self.runtime.mkdir()
        host = f"[{machines[0].address_v6}]" if is_v6 else machines[0].address
        self.address = f"{host}:{PORT}"
        try:
            self._start_all(num_cpus)
        except BaseException:
            self.close()
            raise

    def look(self) -> dict[str, Any]:
        """What a driver sees on the head: how many nodes live, what is in use, groups."""
        seen = self.machines[0].run(
            sys.executable, "-c", LOOK, RAY_ADDRESS=self.address, **NO_TOKEN
        )
        found: dict[str, Any] = json.loads(seen.splitlines()[-1])
        return found

    def close(self) -> None:
        """Removes its files; its processes end with the machines."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start_all(self, num_cpus: int) -> None:
        head, *others = self.machines
        self._start(head, num_cpus, "--head", f"--port={PORT}", "--include-dashboard=false")
        for machine in others:
            machine.look_like_another(self.runtime)
            self._start(machine, num_cpus, f"--address={self.address}")

    def _start(self, machine: Machine, num_cpus: int, *options: str) -> None:
        address = machine.address_v6 if self._is_v6 else machine.address
        machine.run(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
            *(f"--node-ip-address={address}", f"--num-cpus={num_cpus}", "--num-gpus=0"),
            *(f"--temp-dir={self._directory}/{machine.pid}", "--object-store-memory=80000000"),
            **NO_TOKEN,
        )


def why_not() -> str:
    """Why there can be no such machines here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    veth = "ip link add bridge type bridge && ip link add eth0 type veth peer name eth1"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", f"{veth} && mount --bind /dev/null {BOOT_ID}"],
        capture_output=True,
        text=True,
    )
    return f"network namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else ""


def _without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def _enter(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
