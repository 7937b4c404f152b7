"""Addresses of peers: the few forms we take, and which of them may be dialled, kept or told.

Why so narrow: an address comes from strangers and makes our machine open a connection. On a public
network only globally routable ones pass, also when an IPv4 address hides inside an IPv6 one;
else a peer could have us probe the operator's own network. Names (`dns4`, `dns6`) come only from
the operator's own configuration.
What this file does not know: libp2p, who is behind an address.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from p2p.errors import Misbehaving
from p2p.limits import ADDRESS_BYTES_MAX, BOOK_ENTRIES_MAX, OPERATORS_ADDRESS_BYTES_MAX
from p2p.peers import PeerId, key_of_peer_id, peer_id_text

Reach = Literal["devnet", "lan", "public"]  # `p2p.network` of the config

_IP_KINDS: Final = ("ip4", "ip6")
_NAME_KINDS: Final = ("dns4", "dns6")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Address:
    """`/ip4/1.2.3.4/tcp/4001`, with the peer's id where it is told.

    With `relay` host and port are the relay's: `/ip4/…/tcp/…/p2p/<relay>/p2p-circuit`.
    """

    kind: str  # ip4, ip6, dns4, dns6
    host: str
    port: int
    peer: PeerId | None = None
    relay: PeerId | None = None

    def text(self) -> str:
        """As libp2p writes it, without the peer's id."""
        way = f"/p2p/{peer_id_text(self.relay)}/p2p-circuit" if self.relay else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{way}"

    def full_text(self) -> str:
        """With `/p2p/<id>` where the peer is known."""
        return self.text() + (f"/p2p/{peer_id_text(self.peer)}" if self.peer else "")

    def ip(self) -> IpAddress | None:
        """None for a name."""
        return ip_of(self.host) if self.kind in _IP_KINDS else None


def ip_of(host: str) -> IpAddress | None:
    """None for a name. An IPv4 address that is mapped into IPv6 is that IPv4 address: it is what
    the packets go to, and what a socket for both kinds tells of who has come."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def parse_address(text: str, *, names_allowed: bool = False) -> Address:
    """Read one address; Misbehaving for any form but TCP over IP (or a name, where allowed), to
    the peer itself or to its relay."""
    most = OPERATORS_ADDRESS_BYTES_MAX if names_allowed else ADDRESS_BYTES_MAX
    if len(text) > most or not text.isascii():
        raise Misbehaving("an address too long or not ASCII")
    parts = text.split("/")
    if len(parts) not in (5, 7, 8, 10) or parts[0] or parts[3] != "tcp":
        raise Misbehaving("an address that is not IP and TCP")
    kind, host, port_text = parts[1], parts[2], parts[4]
    if kind in _IP_KINDS:
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            raise Misbehaving("not an IP address") from None
        # A zone ("fe80::1%eth0") means something on one machine only.
        if ip.version != (4 if kind == "ip4" else 6) or str(ip) != host or "%" in host:
            raise Misbehaving("an IP address of the wrong kind or not in its usual form")
    elif not (names_allowed and kind in _NAME_KINDS and _is_name(host)):
        raise Misbehaving("an address of an unknown kind")
    if not (port_text.isdecimal() and str(int(port_text)) == port_text):
        raise Misbehaving("not a port")
    if int(port_text) > 65_535:
        raise Misbehaving("a port above 65535")
    relay, end = None, parts[5:]
    if len(end) > 2:
        if end[0] != "p2p" or end[2] != "p2p-circuit":
            raise Misbehaving("an address with an unknown way")
        relay, end = key_of_peer_id(end[1]), end[3:]
    if end and end[0] != "p2p":
        raise Misbehaving("an address with an unknown end")
    peer = key_of_peer_id(end[1]) if end else None
    return Address(kind, host, int(port_text), peer, relay)


def _is_name(host: str) -> bool:
    return 0 < len(host) <= 253 and all(
        part and len(part) <= 63 and part.replace("-", "").isalnum() for part in host.split(".")
    )


def is_usable(address: Address, reach: Reach) -> bool:
    """May we dial, keep or tell this address, which a stranger may have told us?"""
    ip = address.ip()
    if ip is None or address.port == 0 or ip.is_unspecified or ip.is_multicast:
        return False
    return reach != "public" or _is_public(ip)


def are_tellable(texts: Iterable[bytes], reach: Reach) -> bool:
    """May we tell all of these on, which a stranger has signed together?"""
    try:
        return all(is_usable(parse_address(text.decode("ascii")), reach) for text in texts)
    except (Misbehaving, UnicodeDecodeError):
        return False


def _is_public(ip: IpAddress) -> bool:
    if not ip.is_global or ip.is_multicast:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    inner = ip.sixtofour
    if inner is None and ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return inner is None or (inner.is_global and not inner.is_multicast)


def group_of(host: str) -> str:
    """The /24 or /48 that limits count by; the text itself for a name."""
    ip = ip_of(host)
    if ip is None:
        return host
    width = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{ip}/{width}", strict=False))


@lru_cache(maxsize=2 * BOOK_ENTRIES_MAX)  # the dialler asks it of the whole book
def wide_group_of(host: str) -> str:
    """The /16 or /32: on a public network each outbound peer stands in another."""
    ip = ip_of(host)
    if ip is None:
        return host
    width = 16 if ip.version == 4 else 32
    return str(ipaddress.ip_network(f"{ip}/{width}", strict=False))


def addresses_of(texts: Iterable[str], *, with_peer: bool) -> tuple[Address, ...]:
    """The operator's own addresses; ValueError in one line for a bad one."""
    found = []
    for text in texts:
        try:
            address = parse_address(text, names_allowed=True)
        except Misbehaving as error:
            raise ValueError(f"{text}: {error}") from None
        if with_peer and address.peer is None:
            raise ValueError(f"{text}: /p2p/<peer id> is missing")
        if not with_peer and address.relay is not None:
            raise ValueError(f"{text}: the address of a relay, not of this node")
        found.append(address)
    return tuple(found)


def announced_of(texts: Sequence[str], reach: Reach) -> tuple[Address, ...]:
    """What the operator lets us tell others; ValueError for what they would not take.

    A record with a name in it is malformed to them, and they would ban us for it.
    """
    found = addresses_of(texts, with_peer=False)
    for text, address in zip(texts, found, strict=True):
        if address.ip() is None:
            raise ValueError(f"{text}: peers take IP addresses only, no names")
        if not is_usable(address, reach):
            raise ValueError(f"{text}: no peer of a {reach} network would dial it")
    return found
