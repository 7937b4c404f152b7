"""Who offers what: the newest offer of each provider, told by gossip or asked of a peer.

Why only the newest and only for minutes: an offer is a hint where to ask; prices and providers
stand on the ledger, and what an offer says of load is its provider's word.
What this file does not know: how one is chosen (`wallet/payer.py`).
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from consensus.primitives.encoding import SIG, U16, U63, Bytes, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.state import State
from node.ledger.wire.orders import (
    OFFER_BYTES_MAX,
    Offer,
    decode_offer,
    encode_offer,
    offer_message,
)
from node.peering.topics import (
    OFFERS,
    SignedOffer,
    check_offer,
    decode_offer_message,
    encode_offer_message,
)
from p2p.errors import Misbehaving, NetworkError
from p2p.limits import PENALTIES, PROTOCOLS, TOPICS
from p2p.network import Joined, Network, PeerId, Verdict

OFFERS_MAX: Final = 4_096
ASKED_MAX: Final = 64
SEND_EVERY_S: Final = 30.0
CHANGED_AFTER_S: Final = 2.0  # at most so often when something changes
OFFER_LIFE_MS: Final = 120_000

_REQUEST: Final = Record(U63, U16)
_REPLY: Final = ListOf(Record(Bytes(OFFER_BYTES_MAX), SIG), ASKED_MAX)


class Directory:
    """The offers this node knows. Run `run` in a nursery; a provider also runs `run_sender`."""

    def __init__(
        self,
        *,
        network: Network,
        chain_id: bytes,
        get_state: Callable[[], State],
        now_ms: Callable[[], int],
    ) -> None:
        self._network = network
        self._chain_id = chain_id
        self._get_state = get_state
        self._now_ms = now_ms
        self._offers: dict[bytes, SignedOffer] = {}
        self._changed = trio.Event()
        self._seq = 0
        self.counters: Counter[str] = Counter()

    # --- looking

    def offers(self) -> list[Offer]:
        """All that have not expired."""
        now_ms = self._now_ms()
        return [s.offer for s in self._offers.values() if s.offer.expires_ms > now_ms]

    def find_peer(self, provider: bytes) -> PeerId | None:
        """The peer of a provider's account, by its newest offer."""
        signed = self._offers.get(provider)
        return None if signed is None else PeerId(signed.offer.peer_key)

    # --- learning

    async def run(self) -> None:
        """Hear offers, and ask each peer that joins."""
        self._network.serve("offers", self.answer, PROTOCOLS["offers"])
        heard = self._network.subscribe(OFFERS, self._judge, TOPICS[OFFERS])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_who_joins)
            async for _ in heard:  # the judge has kept what it accepted
                self.counters["heard"] += 1

    async def _ask_who_joins(self) -> None:
        async for event in self._network.events():
            if isinstance(event, Joined):
                await self.ask(event.peer)

    async def ask(self, peer: PeerId) -> int:
        """Ask one peer for what it knows; how many offers were new. Failures are counted."""
        timeout_s = PROTOCOLS["offers"].timeout_s
        bytes_max = PROTOCOLS["offers"].reply_max
        try:
            raw = await self._network.request(
                peer, "offers", encode((0, ASKED_MAX)), timeout_s=timeout_s, bytes_max=bytes_max
            )
            pairs = decode(raw, _REPLY, bytes_max, "offers")
            return sum(self.take(SignedOffer(o, s, decode_offer(o))) for o, s in pairs)
        except NetworkError:
            self.counters["ask_failed"] += 1
        except Invalid:
            self.counters["ask_malformed"] += 1
            self._network.penalise(peer, PENALTIES["malformed"], "malformed")
        return 0

    def take(self, signed: SignedOffer) -> bool:
        """Keep an offer if it is good and newer; raises Invalid `offer.signature`."""
        held = self._offers.get(signed.offer.provider)
        if held is not None and held.offer.seq >= signed.offer.seq:
            return False
        if not self._network.may_tell(signed.offer.addresses):  # it is signed as a whole
            self.counters["not_tellable"] += 1
            return False
        if not check_offer(self._get_state(), self._chain_id, signed, self._now_ms()):
            return False
        if held is None and len(self._offers) >= OFFERS_MAX:
            self._forget_expired()
            if len(self._offers) >= OFFERS_MAX:
                self.counters["full"] += 1
                return False
        self._offers[signed.offer.provider] = signed
        return True

    def _forget_expired(self) -> None:
        now_ms = self._now_ms()
        self._offers = {p: s for p, s in self._offers.items() if s.offer.expires_ms > now_ms}

    def _judge(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        try:
            signed = decode_offer_message(data)
            return Verdict.ACCEPT if self.take(signed) else Verdict.IGNORE
        except Invalid:
            return Verdict.REJECT

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[model or 0, max ≤ 64] → [[offer, signature]…]."""
        try:
            model, count = decode(body, _REQUEST, 64, "offers.request")
        except Invalid as refusal:
            raise Misbehaving(str(refusal)) from None
        if not 1 <= count <= ASKED_MAX:
            raise Misbehaving(f"{count} offers asked for")
        now_ms = self._now_ms()
        found: list[tuple[bytes, bytes]] = []
        for signed in self._offers.values():
            serves = not model or any(m.model == model for m in signed.offer.models)
            if serves and signed.offer.expires_ms > now_ms and len(found) < count:
                found.append((signed.raw, signed.signature))
        return encode(found)

    # --- our own

    def note_change(self) -> None:
        """What we serve has changed: tell it soon."""
        self._changed.set()

    async def run_sender(
        self,
        make: Callable[[int, int], Offer | None],
        sign: Callable[[bytes], bytes],
        sent: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Tell `make(seq, expires_ms)` every 30 s and on change; None tells nothing.

        `seq` starts from the clock, so that it rises over restarts.
        """
        while True:
            self._seq = max(self._seq + 1, self._now_ms())
            offer = make(self._seq, self._now_ms() + OFFER_LIFE_MS)
            if offer is not None:
                raw = encode_offer(offer)
                signature = sign(offer_message(self._chain_id, raw))
                self._offers[offer.provider] = SignedOffer(raw, signature, offer)
                await self._network.publish(OFFERS, encode_offer_message(raw, signature))
                self.counters["sent"] += 1
                if sent is not None:
                    await sent()
            self._changed = trio.Event()
            await trio.sleep(CHANGED_AFTER_S)
            with trio.move_on_after(SEND_EVERY_S - CHANGED_AFTER_S):
                await self._changed.wait()
