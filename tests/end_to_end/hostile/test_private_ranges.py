"""A node of a public network neither dials nor tells private addresses, whoever gave it them.

Its book is full of them, and a peer tells it more: in its own record, in an exchange, in an offer.
What it connects to is read where its process asks the kernel for it, so no way out is left out;
what it tells is every address in all that it answers. Public addresses among them show that it
would have dialled and told: they are refused before a packet leaves.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))
from attacking import (  # found by the line above
    Evil,
    Siege,
    now_ms,
    protocol_text,
    published,
)
from attacks_by_gossip import an_offer
from besieged import PROVIDER, Besieged
from bundle_kit import Party, party
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils.varint import decode_varint_with_size
from multiaddr import Multiaddr
from network_kit import wait_until
from wiretap_kit import KeyIdentity

from consensus.primitives.encoding import encode as pack
from node.peering.topics import decode_offer_message
from p2p.addresses import Address, parse_address
from p2p.book import Book
from p2p.framing import encode, encode_reply, frame
from p2p.peers import peer_id_text
from p2p.records import AddressRecord, make_record

PRIVATE: Final = (
    "/ip4/10.1.2.3", "/ip4/172.16.0.1", "/ip4/192.168.1.1", "/ip4/169.254.169.254",
    "/ip4/100.64.0.1", "/ip4/127.0.0.1", "/ip6/::1", "/ip6/fd00::1", "/ip6/::ffff:a00:1",
    "/ip6/64:ff9b::a00:1", "/ip6/2002:a00:1::",
)  # fmt: skip
# Each in another /16. Of the last two records one address is private, so the whole is not told on.
IN_THE_BOOK, BY_EXCHANGE, OF_ITSELF, IN_AN_OFFER = "8.8.8.8", "9.9.9.9", "1.1.1.1", "4.4.4.4"
PORT: Final = 4_001
NOBODY: Final = peer_id_text(party("nobody").key)
SEEN_S: Final = 30.0
QUIET_S: Final = 1.0  # looks of the dialler: each quarter of a second
ADDRESS: Final = re.compile(rb"/ip[46]/([0-9a-f.:]+)/")
HOOK: Final = """
import errno, os, sys
DESCRIPTOR = os.open(os.path.join(os.path.dirname(__file__), "asked"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[-1], tuple):
        os.write(DESCRIPTOR, f"{arguments[-1][0]}\\n".encode())
        raise OSError(errno.ENETUNREACH, "no packet leaves a test")
sys.addaudithook(watch)
"""  # noqa: E501


def at(*places: str) -> tuple[Address, ...]:
    return tuple(parse_address(f"{place}/tcp/{PORT}") for place in places)


def record_of(who: Party, siege: Siege, *places: str) -> AddressRecord:
    return make_record(
        KeyIdentity(who), siege.chain_id, seq_ms=now_ms(), addresses=at(*places), roles=0,
        binding=b"",
    )  # fmt: skip


def strangers(siege: Siege, name: str, public: str) -> list[AddressRecord]:
    """One at each private address, and one that is at a public one too."""
    found = [record_of(party(f"{name} {place}"), siege, place) for place in PRIVATE]
    return [*found, record_of(party(name), siege, PRIVATE[0], f"/ip4/{public}")]


class Watched(Besieged):
    """A node of a public network in whose process a hook notes and refuses every way out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, settings={"engine.kind": "none", "p2p.network": "public"})
        self._site = folder / "site"
        self._site.mkdir()
        (self._site / "sitecustomize.py").write_text(HOOK)

    @property
    def path(self) -> str:
        return str(self._site)

    def asked(self) -> set[str]:
        """Hosts that it asked the kernel to send something to."""
        return set((self._site / "asked").read_text().split())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(tmp_path)
    monkeypatch.setenv("PYTHONPATH", made.path, prepend=":")
    try:
        yield made
    finally:
        made.child.kill()


class Liar:
    """A connected peer that tells private addresses, and hears what it is told."""

    def __init__(self, siege: Siege, evil: Evil) -> None:
        self._siege, self._evil = siege, evil
        self.asked: set[str] = set()
        self.heard: dict[str, bytes] = {}
        records = strangers(siege, "exchange", BY_EXCHANGE)
        self._answers = {
            "peers": encode(tuple(record.value for record in records)),
            "offers": pack([self._offer(1, at("/ip4/" + IN_AN_OFFER, PRIVATE[0]))]),
        }
        for protocol in self._answers:
            evil.host.set_stream_handler(protocol_text(protocol), self._answering(protocol))

    def _offer(self, number: int, addresses: tuple[Address, ...]) -> tuple[bytes, bytes]:
        texts = tuple(address.text().encode() for address in addresses)
        message = an_offer(self._siege, b"liar", number, signer=PROVIDER, addresses=texts)
        signed = decode_offer_message(message)
        return signed.raw, signed.signature

    def _answering(self, protocol: str) -> Any:
        async def answer(stream: Any) -> None:
            await stream.read(1_024)
            await stream.write(frame(encode_reply(0, 0, self._answers[protocol])))
            await stream.close()
            self.asked.add(protocol)

        return answer

    async def come(self) -> None:
        """Be admitted with a record of our own, and have answered what one is asked then."""
        told = self._evil.status(addresses=at("/ip4/" + OF_ITSELF, PRIVATE[1]))
        await self._hear("status", frame(told))
        await wait_until(lambda: self.asked == {"peers", "offers"}, SEEN_S)

    async def offer_again(self) -> None:
        """An offer that may be told: its public address alone."""
        raw, signature = self._offer(2, at("/ip4/" + IN_AN_OFFER))
        message = self._evil.message("offers", pack((4, raw, signature)))
        await self._evil.gossip([published(message)])

    async def ask_all(self) -> None:
        """What it tells of others, and of itself."""
        await self._hear("peers", frame(encode((64,))))
        await self.ask_offers("offers")
        self.heard["identify"] = await self._evil.say("/ipfs/id/1.0.0", then="read")

    async def ask_offers(self, name: str) -> None:
        await self._hear("offers", frame(pack((0, 64))), name)

    async def _hear(self, protocol: str, raw: bytes, name: str = "") -> None:
        said = await self._evil.say(protocol_text(protocol), raw, then="read")
        self.heard[name or protocol] = said

    def told_hosts(self) -> dict[str, set[str]]:
        """Hosts of all addresses in what was heard; texts, but for identify's binary ones."""
        length, size = decode_varint_with_size(self.heard["identify"])
        identity = Identify.FromString(self.heard["identify"][size : size + length])
        listening = "".join(f"{Multiaddr(one)}/" for one in identity.listen_addrs)
        texts = self.heard | {"identify": listening.encode()}
        found = {name: ADDRESS.findall(raw) for name, raw in texts.items()}
        return {name: {host.decode() for host in hosts} for name, hosts in found.items()}


async def lie_to(node: Watched) -> tuple[set[str], dict[str, set[str]]]:
    """Whom it then asks the kernel for, and what it tells."""
    siege = Siege(node.address, node.chain_id, b"")
    async with siege.peer(admitted=False) as evil:
        liar = Liar(siege, evil)
        await liar.come()
        await wait_until(lambda: {IN_THE_BOOK, BY_EXCHANGE} <= node.asked(), SEEN_S)
        await liar.ask_offers("offers at first")
        await liar.offer_again()
        await trio.sleep(QUIET_S)
        await liar.ask_all()
    return node.asked(), liar.told_hosts()


def test_private_addresses_are_neither_dialled_nor_told(node: Watched) -> None:
    siege_of_nobody = Siege(f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}", node.chain_id, b"")
    book = Book("lan")
    for record in strangers(siege_of_nobody, "book", IN_THE_BOOK):
        assert book.learn(record, record.peer, now_ms())
    (node.child.home / "peers.msgpack").write_bytes(book.pack([]))
    node.start()
    node.found_provider()
    asked, told = trio.run(lie_to, node)
    assert asked - {OF_ITSELF} == {IN_THE_BOOK, BY_EXCHANGE}  # its own, once it has left
    assert told["offers"] == {IN_AN_OFFER}
    quiet = ("peers", "status", "identify", "offers at first")
    assert not any(told[name] for name in quiet), told
