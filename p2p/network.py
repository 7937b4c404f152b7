"""The network as the rest of the house sees it: gossip, requests, streams, peers.

Why one small interface: the daemon runs on libp2p, tests on `p2p/memory.py`, and no caller can
tell which. Subscriptions, handlers, scores and counters belong to the network and outlive any
restart of libp2p below it.
What this file does not know: libp2p, and what any body means.
"""

import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from p2p.addresses import (
    Address,
    Reach,
    addresses_of,
    announced_of,
    ip_of,
    is_usable,
    parse_address,
)
from p2p.counters import NetworkStatistics
from p2p.discovery import Discovery
from p2p.errors import ListenError, Misbehaving, Unreachable
from p2p.framing import FrameStream, part
from p2p.gossip import Gossip, Judge, Verdict
from p2p.limits import (
    ADDRESSES_MAX,
    CONNECTIONS_MAX,
    HINT_ADDRESSES_MAX,
    INBOUND_MAX,
    OUTBOUND_TARGET,
    PING_EVERY_DEVNET_S,
    PING_EVERY_S,
    PING_MISSES_MAX,
    PROTOCOLS,
    REACH_LOOK_S,
    REACH_S,
    RECORD_RENEW_S,
    RESTART_FIRST_S,
    RESTART_MAX_S,
    RESTARTS_READY_MAX,
    RESTARTS_WINDOW_S,
    STOP_S,
    MiB,
    ServeLimits,
    TopicLimits,
)
from p2p.mdns import Mdns
from p2p.peers import Joined, Left, PeerId, PeerView, StatusFacts, key_of_peer_id
from p2p.records import AddressRecord, make_record
from p2p.requests import Handler, StreamHandler
from p2p.switchboard import Switchboard

if TYPE_CHECKING:  # libp2p takes 1.5 s to import: not before a network is made
    from p2p.host import Stack, StackParts
    from p2p.relay import RelayUse

log = structlog.get_logger(part="p2p")


__all__ = [
    "FrameStream",
    "Gossip",
    "Handler",
    "Joined",
    "Judge",
    "Left",
    "Libp2pNetwork",
    "Network",
    "NetworkStatistics",
    "PeerId",
    "PeerView",
    "ServeLimits",
    "StatusFacts",
    "StreamHandler",
    "TaskStatus",
    "TopicLimits",
    "Verdict",
    "part",
]


class TaskStatus(Protocol):
    """What `nursery.start` hands to a task: `started()` says that it is ready."""

    def started(self) -> None: ...


class Network(Protocol):
    """Bytes to and from peers. Topics and protocols go by short names: "votes", "blocks".

    On the wire they are `/olnode/<name>/1/<chain>` and `/olnode/<name>/1`.
    """

    me: PeerId

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Forever; started once it listens. Restarts libp2p inside; ListenError at first start."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`; ValueError above the topic's limit or for a topic not subscribed.

        It does not come back to us. With nobody to hear it is lost: gossip promises nothing.
        """
        ...

    def subscribe(self, topic: str, judge: Judge, limits: TopicLimits) -> AsyncIterator[Gossip]:
        """Messages that `judge(forwarder, author, data)` accepted, from now on; once per topic.

        `judge` is synchronous, takes at most 2 ms and never raises: a raise counts as IGNORE and
        as our bug. We relay what it accepts, whether or not the iterator is read.
        """
        ...

    async def request(
        self, peer: PeerId, protocol: str, body: bytes, *, timeout_s: float, bytes_max: int
    ) -> bytes:
        """The reply's body. Refused with the peer's code, Unreachable at once if not connected,
        TooSlow, or Misbehaving for a reply longer than `bytes_max` or malformed."""
        ...

    def serve(self, protocol: str, handler: Handler, limits: ServeLimits) -> None:
        """Answer requests: `handler(peer, body)` returns the reply's body or raises Refused.

        Misbehaving out of it answers 1 and counts against the caller; any other exception answers
        10 and counts as our bug.
        """
        ...

    async def reach(self, peer: PeerId, addresses: Iterable[bytes]) -> None:
        """Be linked with `peer` before it is asked: dialled where we know it to be, else at what
        it says of itself, if that may be dialled at all. Unreachable after REACH_S."""
        ...

    def may_tell(self, addresses: Iterable[bytes]) -> bool:
        """Whether all of these, which a stranger says of itself, may be told on in this network."""
        ...

    async def open(self, peer: PeerId, protocol: str) -> FrameStream:
        """A duplex stream; Unreachable if not connected or the peer knows no such protocol."""
        ...

    def accept(self, protocol: str, handler: StreamHandler, limits: ServeLimits) -> None:
        """Take duplex streams; each lives as long as its call of `handler`, then it is closed.

        Who comes uninvited (not admitted, over `limits`) is reset before the handler sees it.
        """
        ...

    def peers(self) -> tuple[PeerView, ...]:
        """Every connected peer."""
        ...

    def events(self) -> AsyncIterator[Joined | Left]:
        """A Joined for each peer admitted now, then what happens; any number of readers."""
        ...

    def bindings(self) -> Mapping[PeerId, bytes]:
        """Every binding judged good, of connected peers and of others in the book."""
        ...

    def admit(self, peer: PeerId) -> None:
        """Admit a connected peer without waiting for its `status`."""
        ...

    def penalise(self, peer: PeerId, points: int, reason: str) -> None:
        """Add points; at 100 it is banned and disconnected. `reason` is one fixed word."""
        ...

    def ban(self, peer: PeerId, length_s: float) -> None:
        """Disconnect it, and know it no more for so long, at most BAN_ASKED_MAX_S: the operator's
        word, which also counts for reserved peers and outlives a restart."""
        ...

    def unban(self, peer: PeerId) -> bool:
        """End a ban and forget its points; False when there was no ban."""
        ...

    def bans(self) -> Mapping[PeerId, float]:
        """Seconds left of each ban."""
        ...

    def keep(self, peers: Iterable[PeerId]) -> None:
        """These peers, and those configured, are never pruned and always redialled."""
        ...

    def statistics(self) -> NetworkStatistics: ...


class Libp2pNetwork(Switchboard):
    """The Network over libp2p; `run` builds a stack, and a new one when that ends (page 70 §9).

    `listen`, `announce`, `bootstrap`, `reserved` are addresses as text, the last two with
    `/p2p/<peer id>`; ValueError for a bad one. `reach` is `p2p.network` of the config: `devnet` and
    `lan` allow private addresses. `facts` is asked for each `status`; `binding` says which
    validator this peer speaks for, and `judge_binding(peer, binding)` judges others': it must be
    quick and never raise, and hears of each newer binding once. `deny` holds peer ids and networks
    in CIDR form. Without `book` nothing is remembered.
    """

    def __init__(
        self,
        *,
        seed: bytes,
        chain_id: bytes,
        listen: Sequence[str],
        reach: Reach = "public",
        announce: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        reserved: Sequence[str] = (),
        deny: Sequence[str] = (),
        book: Path | None = None,
        mdns: bool = False,
        relay: "RelayUse" = "off",
        software: str = "olnode",
        facts: Callable[[], StatusFacts] = StatusFacts,
        binding: bytes = b"",
        judge_binding: Callable[[PeerId, bytes], bool] = lambda peer, binding: False,
        connections_max: int = CONNECTIONS_MAX,
        inbound_max: int = INBOUND_MAX,
        upload_bytes_s: int = 16 * MiB,
        outbound_target: int = OUTBOUND_TARGET,
        ping_every_s: float | None = None,
        ping_misses_max: int = PING_MISSES_MAX,
    ) -> None:
        from p2p.host import Libp2pIdentity

        identity = Libp2pIdentity(seed)
        self._identity = identity
        self._chain_id = chain_id
        self._reach = reach
        self._listen = addresses_of(listen, with_peer=False)
        self._announce = announced_of(announce, reach)
        near = addresses_of(reserved, with_peer=True)
        self._facts, self._binding = facts, binding
        self._relay = relay
        self._denied_peers, self._denied_networks = denied_of(deny)
        self._stack: Stack | None = None
        self._record: AddressRecord | None = None
        self._record_due_s = 0.0
        self._restarted_s: list[float] = []
        if ping_every_s is None:
            ping_every_s = PING_EVERY_DEVNET_S if reach == "devnet" else PING_EVERY_S
        super().__init__(
            identity=identity,
            chain_id=chain_id,
            software=software,
            facts=facts,
            own_record=self._own_record,
            judge_binding=judge_binding,
            reserved=[address.peer for address in near if address.peer],
            now_ms=_now_ms,
            ping_every_s=ping_every_s,
            ping_misses_max=ping_misses_max,
            private_allowed=reach != "public",
            upload_bytes_s=upload_bytes_s,
            connections_max=connections_max,
            inbound_max=inbound_max,
        )
        self._discovery = Discovery(
            identity=identity,
            chain_id=chain_id,
            members=self.members,
            counters=self.counters,
            ask=self.request,
            reach=reach,
            bootstrap=near + addresses_of(bootstrap, with_peer=True),
            book_path=book,
            is_denied=self._is_denied,
            is_in_use=self.requests.is_in_use,
            now_ms=_now_ms,
            through_relays=relay != "off",
            outbound_target=outbound_target,
        )
        self._mdns = self._make_mdns() if mdns else None
        self.serve("peers", self._discovery.answer_peers, PROTOCOLS["peers"])

    def _make_mdns(self) -> Mdns:
        if self._reach == "public":
            raise ValueError("mdns: only where private addresses are allowed")
        return Mdns(
            me=self.me,
            chain_id=self._chain_id,
            reach=self._reach,
            counters=self.counters,
            found=self._discovery.hint,
            lost=self._discovery.drop_hint,
        )

    def addresses(self) -> tuple[str, ...]:
        """Where we listen now, in full, with the ports that port 0 became; empty when we do not."""
        return tuple(replace(a, peer=self.me).full_text() for a in self._listening())

    def announced(self) -> tuple[str, ...]:
        """Where others are told that we listen, without our id; empty where they could not come."""
        return tuple(address.text() for address in self._announced())

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """See Network.run. A cancel refuses new requests, gives running ones STOP_S, and closes."""
        from p2p.host import check_port_free

        for address in self._listen:
            check_port_free(address)
        self._discovery.restore_bans()
        self.requests.is_closing = False
        scope = trio.CancelScope(shield=True)  # lets running requests end before the stack does
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(partial(self._supervise, scope))
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.requests.is_closing = True
                with trio.CancelScope(deadline=trio.current_time() + STOP_S, shield=True):
                    await self.requests.wait_idle()
                scope.cancel()

    async def _supervise(self, scope: trio.CancelScope, *, task_status: TaskStatus) -> None:
        """Build a stack and run it; when it falls, wait, and build the next."""
        from p2p.host import Stack

        parts = self.stack_parts()
        started: list[TaskStatus] = [task_status]  # told once, by the first stack that listens

        async def attach(stack: "Stack", nursery: trio.Nursery) -> None:
            def begin() -> None:
                self._stack = stack
                nursery.start_soon(self._discovery.run, stack.dial)
                if self._mdns is not None:
                    nursery.start_soon(self._mdns.run, stack.listening)
                while started:
                    started.pop().started()

            await self._run_with(stack, nursery, begin)

        wait_s = RESTART_FIRST_S
        with scope:
            while True:
                began_s = trio.current_time()
                try:
                    await Stack(parts).run(attach)
                except ListenError:
                    if started:
                        raise
                    log.warning("cannot listen, trying again")
                except Exception as error:  # libp2p's fall must not be the daemon's
                    log.error("network stack fell, restarting", exc_info=_innermost(error))
                finally:
                    self._stack = None
                self.counters.restarts += 1
                now_s = trio.current_time()
                wait_s = RESTART_FIRST_S if now_s - began_s > RESTART_MAX_S else wait_s
                recent = [at for at in self._restarted_s if at > now_s - RESTARTS_WINDOW_S]
                self._restarted_s = [*recent, now_s]
                self._is_ready = len(self._restarted_s) <= RESTARTS_READY_MAX
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, RESTART_MAX_S)

    def stack_parts(self) -> "StackParts":
        """What each stack is built of, and outlives it."""
        from p2p.host import StackParts

        return StackParts(
            identity=self._identity,
            chain_id=self._chain_id,
            members=self.members,
            topics=self.topics,
            requests=self.requests,
            counters=self.counters,
            listen=self._listen,
            announced=self._announced,
            is_denied=self._is_denied,
            private_allowed=self._reach != "public",
            connections_max=max(self.members.connections_max, len(self.members.reserved()) + 32),
            relay=self._relay,
        )

    def add(self, text: str) -> PeerId:
        """Dial an address with `/p2p/<peer id>` at once; until the next start the peer is reserved.

        Its own record, once it has come, outlives that. Raises ValueError for a bad address, our
        own, one that `deny` holds, and one of a banned peer.
        """
        (address,) = addresses_of([text], with_peer=True)
        assert address.peer is not None
        if address.peer == self.me:
            raise ValueError("this node itself")
        if self._is_denied(address.peer, address.host):
            raise ValueError("denied by the config")
        if self.members.is_banned(address.peer):
            raise ValueError("banned: olnode peers unban comes first")
        self.members.reserve(address.peer)
        self._discovery.add(address.peer, address)
        return address.peer

    async def reach(self, peer: PeerId, addresses: Iterable[bytes]) -> None:
        if self.members.is_admitted(peer):
            await trio.lowlevel.checkpoint()
            return
        if self.members.is_banned(peer) or peer == self.me:
            raise Unreachable("banned, or this node itself")
        if not self._discovery.want(peer, self._vetted(addresses), REACH_S):
            raise Unreachable("every outbound link is in use")
        with trio.move_on_after(REACH_S):
            while not self.members.is_admitted(peer):  # noqa: ASYNC110  # many ways lead here
                await trio.sleep(REACH_LOOK_S)
            return
        raise Unreachable("it cannot be dialled")

    def _vetted(self, texts: Iterable[bytes]) -> tuple[Address, ...]:
        found = []
        for text in texts:
            with suppress(Misbehaving, UnicodeDecodeError):
                address = parse_address(text.decode("ascii"))
                if is_usable(address, self._reach):
                    found.append(replace(address, peer=None))
        return tuple(found[:HINT_ADDRESSES_MAX])

    # --- our own addresses

    def _listening(self) -> tuple[Address, ...]:
        return self._stack.listening() if self._stack is not None else ()

    def _announced(self) -> tuple[Address, ...]:
        """What the operator says, else where we listen if others could come there."""
        if self._announce:
            return self._announce[:ADDRESSES_MAX]
        usable = [address for address in self._listening() if is_usable(address, self._reach)]
        if not usable and self._stack is not None:
            relayed = self._stack.relayed_addresses()
            usable = [address for address in relayed if is_usable(address, self._reach)]
        return tuple(usable[:ADDRESSES_MAX])

    def _own_record(self) -> AddressRecord:
        """Our signed record, made anew when it has changed or is six hours old."""
        addresses, roles = self._announced(), self._facts().roles
        known, now_s = self._record, trio.current_time()
        is_same = known is not None and (known.addresses, known.roles) == (addresses, roles)
        if known is not None and is_same and now_s < self._record_due_s:
            return known
        self._record_due_s = now_s + RECORD_RENEW_S
        self._record = make_record(
            self._identity,
            self._chain_id,
            seq_ms=_now_ms(),
            addresses=addresses,
            roles=roles,
            binding=self._binding,
        )
        return self._record

    def _is_denied(self, peer: PeerId, host: str) -> bool:
        if peer in self._denied_peers:
            return True
        if not self._denied_networks or not host:
            return False
        ip = ip_of(host)  # None for a name of the operator's own
        return ip is not None and any(ip in network for network in self._denied_networks)


def _innermost(error: Exception) -> Exception:
    """The first failure inside nurseries' groups: its trace tells, theirs are all alike."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def denied_of(
    texts: Iterable[str],
) -> tuple[frozenset[PeerId], tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]]:
    """Peer ids and networks of the operator's deny list; ValueError for what is neither."""
    peers, networks = [], []
    for text in texts:
        if "." in text or ":" in text:
            networks.append(ipaddress.ip_network(text))
            continue
        try:
            peers.append(key_of_peer_id(text))
        except Misbehaving:
            raise ValueError(f"{text}: neither a peer id nor a network") from None
    return frozenset(peers), tuple(networks)
