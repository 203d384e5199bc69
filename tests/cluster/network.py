"""Two hosts on a switch, on this machine. Each has a name, an address and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.namespaces import in_namespaces, kill
from tests.runs import PROJECT, environment

ADDRESSES = {"h1": "10.0.0.1", "h2": "10.0.0.2"}
# The first process of a machine. It writes a line when the machine is on.
ON = 'hostname "$0" && ip link set lo up && echo on && exec sleep infinity'


class Network:
    """A switch with the hosts ``h1`` and ``h2``.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in ADDRESSES.items()))
        self.machines: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Switch on all machines."""
        self._power("switch")
        self._ip("switch", "link add bridge up type bridge")
        for host in ADDRESSES:
            self.switch_on(host)

    def switch_on(self, host: str) -> None:
        """Switch on a host, with a cable to the switch."""
        self._power(host)
        # The network card keeps its address, because other machines remember it.
        card, pid = f"02:00:00:00:00:0{host[1]}", self.machines[host].pid
        self._ip("switch", f"link add {host} up master bridge type veth peer name eth0 address {card} netns {pid}")
        self._ip(host, f"address add {ADDRESSES[host]}/24 dev eth0")
        self._ip(host, "link set eth0 up")

    def unplug(self, host: str) -> None:
        """Cut a host's link. Its network card does not notice: packets are lost."""
        self._ip("switch", f"link set {host} nomaster")

    def plug(self, host: str) -> None:
        """Mend a host's link."""
        self._ip("switch", f"link set {host} master bridge")

    def cut_power(self, host: str) -> None:
        """End a host and all its processes at once. Nobody is told."""
        self._ip("switch", f"link delete {host}")
        self._end(host)

    def stop(self) -> None:
        """End all machines."""
        for name in list(self.machines):
            self._end(name)

    def start_in(self, host: str, *command: str, out: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command on a host, in the root of the repository. Its output is appended to a file."""
        enter = (
            "nsenter",
            f"--target={self._first_process(host)}",
            "--mount",
            "--net",
            "--uts",
            "--pid",
            f"--wd={PROJECT}",
        )
        variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with out.open("ab") as file:
            return subprocess.Popen([*enter, *command], env=environment(**variables), stdout=file, stderr=file)

    def kill(self, host: str, program: str) -> None:
        """Send SIGKILL to the only process on a host whose command line contains some words."""
        first = Path("/proc", self._first_process(host), "ns/pid").readlink()
        kill(program, lambda process: (process / "ns/pid").readlink() == first)

    def _power(self, name: str) -> None:
        command = in_namespaces(self.hosts, "sh", "-c", ON, name, also=("--net", "--uts"))
        self.machines[name] = machine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert machine.stdout is not None and machine.stdout.readline() == "on\n", f"{name} did not start"

    def _end(self, name: str) -> None:
        machine = self.machines.pop(name)
        machine.kill()
        machine.communicate()

    def _ip(self, name: str, arguments: str) -> None:
        """Run ``ip`` on a machine."""
        command = ("nsenter", f"--target={self.machines[name].pid}", "--net", "ip", *arguments.split())
        subprocess.run(command, check=True)

    def _first_process(self, name: str) -> str:
        """Its number here; there it is 1. ``unshare`` is its parent."""
        pid = self.machines[name].pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
