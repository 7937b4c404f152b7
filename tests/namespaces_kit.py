"""A network namespace for each node, joined by a bridge in one more: cables that a test can pull.

Why the kernel's own: a pulled cable says nothing to anybody, as a broken line does; packets are
gone, connections stay half-open. The bridge has a namespace too, so the host's network is not
touched, and a run that was killed leaves nothing but namespaces of its own name.
"""

import os
import shutil
import subprocess
from typing import Final

HUB: Final = "hub"
NOBODY: Final = "02:00:00:00:00:01"  # no machine has it
NETWORK: Final = "10.77.0"  # inside the namespaces only


class NoNamespaces(Exception):
    """This machine makes none for us; the text says why."""


class Cables:
    """`count` namespaces on one bridge; `pull` and `plug` one of them. Close it at the end."""

    def __init__(self, count: int) -> None:
        if os.geteuid() or shutil.which("ip") is None:
            raise NoNamespaces("network namespaces need root and the command ip")
        self._prefix = f"olnode-{os.getpid()}"
        self._made: list[str] = []
        try:
            self._add(HUB)
            self._in(HUB, "link", "add", "bridge", "type", "bridge")
            self._in(HUB, "link", "set", "bridge", "up")
            for number in range(count):
                self._add(str(number))
                self._wire(number)
        except (subprocess.CalledProcessError, OSError) as error:
            self.close()
            why = getattr(error, "stderr", b"") or str(error).encode()
            raise NoNamespaces(f"no network namespaces here: {why.decode().strip()}") from None

    def host(self, number: int) -> str:
        """Its address, that the others reach while its cable is plugged in."""
        return f"{NETWORK}.{number + 1}"

    def prefix(self, number: int) -> tuple[str, ...]:
        """What starts a command in its namespace."""
        return ("ip", "netns", "exec", self._name(str(number)))

    def pull(self, number: int) -> None:
        """Packets to and from it are lost from now on, in silence."""
        self._in(HUB, "link", "set", f"port{number}", "nomaster")

    def plug(self, number: int) -> None:
        """They arrive again."""
        self._in(HUB, "link", "set", f"port{number}", "master", "bridge")

    def deafen(self, number: int) -> None:
        """It is heard by the others and hears nobody, from now on: their packets go astray."""
        for other in self._others(number):
            self._in(other, "neighbour", "replace", self.host(number), "dev", "eth0",
                     "lladdr", NOBODY, "nud", "permanent")  # fmt: skip

    def undeafen(self, number: int) -> None:
        """It hears them again."""
        for other in self._others(number):
            self._in(other, "neighbour", "delete", self.host(number), "dev", "eth0")

    def _others(self, number: int) -> list[str]:
        return [name for name in self._made if name not in (HUB, str(number))]

    def close(self) -> None:
        """Remove all namespaces, and with them their links. Processes in them must have ended."""
        while self._made:
            _ip("netns", "delete", self._name(self._made.pop()))

    def _add(self, name: str) -> None:
        _ip("netns", "add", self._name(name))
        self._made.append(name)

    def _wire(self, number: int) -> None:
        port, inside = f"port{number}", self._name(str(number))
        self._in(HUB, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inside)
        self._in(HUB, "link", "set", port, "master", "bridge", "up")
        for words in (
            ("address", "add", f"{self.host(number)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            self._in(str(number), *words)

    def _in(self, name: str, *words: str) -> None:
        _ip("-n", self._name(name), *words)

    def _name(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
