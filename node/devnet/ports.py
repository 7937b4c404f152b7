"""Five free ports on this machine.

Why a search and not a setting: two devnets, or anything else, may run here already.
"""

import socket
from typing import Final

FIRST_PORT: Final = 27_017
PORT_STEP: Final = 10
PORTS: Final = 5
BASES_TRIED: Final = 50


class NoPorts(Exception):
    """Nothing is free from the usual base on."""


def free_ports() -> tuple[int, ...]:
    """One port for each node, from the usual base on; raises NoPorts."""
    for number in range(BASES_TRIED):
        base = FIRST_PORT + 100 * number
        ports = tuple(base + PORT_STEP * place for place in range(PORTS))
        if all(_is_free(port) for port in ports):
            return ports
    raise NoPorts("no five ports are free on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
