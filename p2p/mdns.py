"""Neighbours on the same wire: our address by multicast DNS, and theirs handed to our own dialler.

The form is libp2p's (`dnsaddr=` texts under `_p2p-…._udp.local`), the name is our chain's, so
that only nodes of one chain see each other. Why not libp2p's own: it puts whatever it hears into
the table that the library dials from, and never says which addresses it may tell.
What is heard here is not signed by anybody: it is tried, never kept, never told on. Private
addresses only, in and out; loopback only where the whole network is one machine.
What this file does not know: whom we dial and when.
"""

import contextlib
import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from p2p.addresses import Address, Reach, is_usable, parse_address
from p2p.counters import Counters
from p2p.errors import Misbehaving
from p2p.limits import (
    HINT_ADDRESSES_MAX,
    MDNS_LOOK_S,
    MDNS_PEERS_MAX,
    MDNS_QUEUE_MAX,
    MDNS_RESOLVE_MS,
    MDNS_RETRY_S,
    MDNS_STOP_S,
    MDNS_TEXT_BYTES_MAX,
)
from p2p.peers import PeerId

if TYPE_CHECKING:
    from zeroconf import ServiceBrowser, ServiceStateChange, Zeroconf

log = structlog.get_logger(part="p2p")

_KEY: Final = b"dnsaddr="
_TEXT_LENGTH_MAX: Final = 255  # of one text: its length is one byte


def service_type(chain_id: bytes) -> str:
    """The name that nodes of one chain share: libp2p's for a private network, 15 letters at most
    (RFC 6335)."""
    return f"_p2p-{chain_id.hex()[:11]}._udp.local."


def is_neighbourly(address: Address, reach: Reach) -> bool:
    """May it be told to the wire, or dialled because the wire said so?"""
    ip = address.ip()
    if reach == "public" or ip is None or address.relay is not None or ip.is_global:
        return False
    return is_usable(address, reach) and (reach == "devnet" or not ip.is_loopback)


def encode_texts(me: PeerId, addresses: Iterable[Address]) -> bytes:
    """The TXT record: a length byte and `dnsaddr=<address with /p2p/…>` for each."""
    full = (Address(a.kind, a.host, a.port, me).full_text().encode() for a in addresses)
    return b"".join(bytes([len(_KEY + text)]) + _KEY + text for text in full)


def decode_texts(raw: bytes, reach: Reach) -> tuple[PeerId, tuple[Address, ...]] | None:
    """Whom a TXT record speaks of, and where it may be dialled; None if there is nothing to dial.

    Texts that we cannot use are passed over: other software has other transports. Misbehaving for
    one that is too long, cut short, or speaks of two peers.
    """
    if len(raw) > MDNS_TEXT_BYTES_MAX:
        raise Misbehaving("mdns: a text too long")
    peers: set[PeerId] = set()
    found: list[Address] = []
    while raw:
        length, raw = raw[0], raw[1:]
        text, raw = raw[:length], raw[length:]
        if len(text) < length:
            raise Misbehaving("mdns: a text cut short")
        if not text.startswith(_KEY):
            continue
        with contextlib.suppress(Misbehaving, UnicodeDecodeError):
            address = parse_address(text[len(_KEY) :].decode("ascii"))
            if address.peer is not None and is_neighbourly(address, reach):
                peers.add(address.peer)
                found.append(Address(address.kind, address.host, address.port))
    if len(peers) > 1:
        raise Misbehaving("mdns: two peers in one text")
    return (peers.pop(), tuple(found[:HINT_ADDRESSES_MAX])) if peers else None


def spelled_out(listening: Iterable[Address]) -> tuple[Address, ...]:
    """`0.0.0.0` and `::` as the addresses that this machine has, the others as they are."""
    import ifaddr

    found: list[Address] = []
    for address in listening:
        ip = address.ip()
        if ip is None or not ip.is_unspecified:
            found.append(address)
            continue
        for adapter in ifaddr.get_adapters():
            texts = (told.ip if told.is_IPv4 else told.ip[0] for told in adapter.ips)
            hosts = [host for host in map(str, texts) if _version(host) == ip.version]
            found += [Address(address.kind, host, address.port) for host in hosts]
    return tuple(found)


def _version(host: str) -> int:
    return ipaddress.ip_address(host.partition("%")[0]).version


class Mdns:
    """Tells where we listen and hands on who else is there, until cancelled.

    `found(peer, addresses)` may come again for one peer, `lost(peer)` once it has said goodbye.
    """

    def __init__(
        self,
        *,
        me: PeerId,
        chain_id: bytes,
        reach: Reach,
        counters: Counters,
        found: Callable[[PeerId, tuple[Address, ...]], None],
        lost: Callable[[PeerId], None],
    ) -> None:
        assert reach != "public"
        self._me = me
        self._type = service_type(chain_id)
        self._name = f"{os.urandom(16).hex()}.{self._type}"  # random, as libp2p's rules want it
        self._reach = reach
        self._counters = counters
        self._found = found
        self._lost = lost
        self._heard: deque[tuple[str, bytes | None]] = deque()
        self._peers: dict[str, PeerId] = {}
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, listening: Callable[[], Iterable[Address]]) -> None:
        """A machine without multicast is told of once, and tried again each minute. Whose addresses
        change, as a laptop's do, begins anew with those it has now."""
        self._token = trio.lowlevel.current_trio_token()
        to_thread: Any = trio.to_thread.run_sync  # libp2p brings old types for trio
        while True:
            zeroconf = None
            try:
                told = await to_thread(self._own, tuple(listening()))
                zeroconf, browser = await to_thread(self._begin, told)
                is_same = True
                while is_same:
                    await trio.sleep(MDNS_LOOK_S)
                    is_same = told == await to_thread(self._own, tuple(listening()))
            except OSError as error:
                self._counters.faults["mdns"] += 1
                if self._counters.faults["mdns"] == 1:
                    log.warning("no multicast DNS here", why=str(error))
                await trio.sleep(MDNS_RETRY_S)
            finally:
                if zeroconf is not None:
                    deadline_s = trio.current_time() + MDNS_STOP_S
                    with trio.CancelScope(deadline=deadline_s, shield=True):
                        await to_thread(_end, zeroconf, browser, abandon_on_cancel=True)

    def _own(self, listening: tuple[Address, ...]) -> list[Address]:
        """What of ours the wire may know."""
        own = [a for a in spelled_out(listening) if is_neighbourly(a, self._reach)]
        return own[:HINT_ADDRESSES_MAX]

    def _begin(self, told: list[Address]) -> "tuple[Zeroconf, ServiceBrowser]":
        """In a thread: it waits for the wire. OSError where there is nothing to speak through."""
        from zeroconf import Error, IPVersion, ServiceBrowser, ServiceInfo, Zeroconf

        hosts = sorted({address.host for address in told if address.kind == "ip4"})
        if not hosts:
            raise OSError("no private IPv4 address to speak from")
        zeroconf = Zeroconf(interfaces=hosts, ip_version=IPVersion.V4Only)
        info = ServiceInfo(
            self._type,
            self._name,
            port=told[0].port,
            properties=encode_texts(self._me, told),
            server=f"{self._name.partition('.')[0]}.local.",
            addresses=[socket.inet_aton(host) for host in hosts],
        )
        try:
            zeroconf.register_service(info)
            return zeroconf, ServiceBrowser(zeroconf, self._type, handlers=[self._changed])
        except (Error, OSError) as error:
            zeroconf.close()
            raise OSError(repr(error)) from None

    # --- what the wire says

    def _changed(
        self,
        zeroconf: "Zeroconf",
        service_type: str,
        name: str,
        state_change: "ServiceStateChange",
    ) -> None:
        """In a thread of the library's, where asking for a text may wait."""
        from zeroconf import Error

        if state_change.name == "Removed":
            self._hear(name, None)
            return
        with contextlib.suppress(Error, OSError):  # it is gone again, or we are closing
            info = zeroconf.get_service_info(service_type, name, timeout=MDNS_RESOLVE_MS)
            if info is not None:
                self._hear(name, info.text)

    def _hear(self, name: str, texts: bytes | None) -> None:
        """`texts` is None for a goodbye."""
        if name == self._name:
            return
        if len(self._heard) >= MDNS_QUEUE_MAX:  # a chatterer's: what is lost comes again by itself
            self._counters.queue_dropped["mdns", "shed"] += 1  # nobody else writes this one
            return
        self._heard.append((name, texts))
        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take, idempotent=True)

    def _take(self) -> None:
        while self._heard:
            name, texts = self._heard.popleft()
            known = self._peers.pop(name, None)
            try:
                told = None if texts is None else decode_texts(texts, self._reach)
            except Misbehaving:
                self._counters.faults["mdns text"] += 1
                continue
            if told is not None and told[0] != self._me:
                if len(self._peers) >= MDNS_PEERS_MAX:  # names cost their maker nothing
                    self._counters.queue_dropped["mdns", "full"] += 1
                    continue
                self._peers[name] = told[0]
                self._found(*told)
            elif known is not None:
                self._lost(known)


def _end(zeroconf: "Zeroconf", browser: "ServiceBrowser") -> None:
    browser.cancel()
    zeroconf.close()  # says goodbye for us
