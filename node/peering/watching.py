"""Bundles kept for providers, and told when a channel closes and nobody else has told them.

Why anybody may: a bundle says by itself whom it pays, so a provider that is down when a payer
closes is paid by whoever still holds one. Why only from the provider's own peer: with a bundle that
was gossiped, of fewer sections and a greater number, others could push out what it gave us.
Why checks in this order: shape and numbers cost nothing, a signature 42 µs, a whole bundle some
milliseconds; each stage refuses what the next one would pay for (page 30 §8).
Why only what a block would take now: a place here is then paid for by a bonded provider and by a
payer's cap. What never settles would hold its place for a day, and take the room of honest ones.
Why on the disk: both may be down for a while, and the payer's waiting time is a day.
Why not audited: its provider may be gone and cannot state its scores. Disputes are for that.
What this file does not know: how a bundle settles, what is in it beside lanes and vouchers.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import trio

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import SIG, U8, U63, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.context import Context
from node.ledger.rules.channels import (
    apply_bundle,
    find_provider_key,
    lane_of,
    served_channels,
)
from node.ledger.state import State
from node.ledger.wire.bundles import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    Bundle,
    BundleHeader,
    bundle_message,
    check_bytes,
    check_header,
    decode_section,
)
from node.ledger.wire.orders import decode_voucher
from node.observe import get_log
from node.peering.topics import is_new_bundle
from node.storage.segments import sync_directory, write_durably
from p2p.errors import Code, Misbehaving, NetworkError, Refused
from p2p.limits import PROTOCOLS, TokenBucket
from p2p.network import Network, PeerId

KEEP: Final = 1  # the kind of the request, beside 0 that asks for bodies
KEEPERS: Final = 2  # whom we hand our own to
KEPT_MAX: Final = 256  # providers, the newest bundle of each
KEPT_BYTES_MAX: Final = 64 << 20
KEPT_LANES_MAX: Final = 32_768  # 1,024 a bundle; a look at one costs some microseconds
KEPT_MS_MAX: Final = 24 * 3_600_000  # also where vouchers last longer
EVERY_S: Final = 5.0  # of one provider, at least
CHECKED_S: Final = 4.0  # whole bundles, of all providers together
CHECKED_BURST: Final = 16
LOOK_S: Final = 1.0
GRACE_S: Final = 10.0  # a provider that is up settles at once when its channel closes
AGAIN_S: Final = 150.0  # the same bytes go nowhere within the seen mark's two minutes
UNKEPT_MEND: Final = "stay up while channels close, and see olnode status: are validators peers?"
REPLY: Final = Record(U63)
_KEPT, _VOID = "handed", "hand_void"
_REQUEST: Final = Record(U8, Bytes(HEADER_BYTES_MAX), SIG, Bytes(BODY_BYTES_MAX, 1))
_FILE: Final = Record(Bytes(HEADER_BYTES_MAX), SIG, Bytes(BODY_BYTES_MAX, 1))
_FILE_BYTES_MAX: Final = HEADER_BYTES_MAX + BODY_BYTES_MAX + 128

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("watching")


@dataclass(slots=True)
class Kept:
    """A bundle we hold for its provider; `begins`: (channel, lane, first receipt) of its lanes.

    `amounts`: what it takes out of each channel. `settled`: the provider's number on the ledger
    when its lanes were last looked at; they stand still as long as it does.
    """

    bundle: Bundle
    provider: bytes
    number: int
    until_ms: int  # the first of its vouchers is void then, and all of it with that
    begins: tuple[tuple[bytes, int, int], ...]
    amounts: dict[bytes, int]
    settled: int = -1
    is_closing: bool = False  # one of its channels
    closing_s: float | None = None  # since when we know
    told_s: float = float("-inf")


class Watching:
    """Keeps others' bundles and hands over our own. Run `run` in a nursery.

    `get_height`: of the ledger that `get_state` shows. `find_validators`: peers that run one, also
    if they are not connected. `tell` pools and gossips a bundle.
    """

    def __init__(
        self,
        *,
        network: Network,
        chain_id: bytes,
        folder: Path,
        get_state: Callable[[], State],
        get_height: Callable[[], int],
        find_validators: Callable[[], Sequence[PeerId]],
        tell: Callable[[Bundle], Awaitable[None]],
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        """Reads back what is kept in `folder`; what cannot be read is told and removed."""
        self._network = network
        self._chain_id = chain_id
        self._folder = folder
        self._get_state = get_state
        self._get_height = get_height
        self._find_validators = find_validators
        self._tell = tell
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._kept: dict[bytes, Kept] = {}
        self._taken_s: dict[bytes, float] = {}  # provider → when its last one was checked
        self._turns: TokenBucket | None = None
        self._height = 0
        self._has_keepers = True  # until we know better
        self._writing = trio.Lock()
        self.counters: Counter[str] = Counter()
        self._read_kept()

    @property
    def kept(self) -> int:
        """For how many providers we hold one."""
        return len(self._kept)

    # --- our own

    async def hand(self, bundle: Bundle) -> int:
        """Give it to validators to keep; how many do. Always the same ones, while they are here."""
        provider = check_header(bundle).provider
        here = {view.peer for view in self._network.peers() if view.admitted}
        found = {peer: sha256(peer, provider) for peer in self._find_validators() if peer in here}
        peers = sorted(found, key=found.__getitem__)[:KEEPERS]
        body = encode((KEEP, *bundle))
        outcomes: list[str] = []

        async def ask(peer: PeerId) -> None:
            outcomes.append(await self._ask(peer, body))

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        self.counters.update(outcomes)
        keepers = outcomes.count(_KEPT)
        if keepers or _VOID not in outcomes:
            self._tell_operator(bool(keepers), asked=len(peers))
        return keepers

    async def _ask(self, peer: PeerId, body: bytes) -> str:
        """Hand it to one peer; the name under which the outcome counts."""
        limits = PROTOCOLS["bundles"]
        try:
            raw = await self._network.request(
                peer, "bundles", body, timeout_s=limits.timeout_s, bytes_max=limits.reply_max
            )
            decode(raw, REPLY, limits.reply_max, "watching.reply")
        except Refused as refused:
            # A ledger newer than ours has settled something of it: the next one is made of less.
            return _VOID if refused.code == Code.EXPIRED else "hand_refused"
        except NetworkError:
            return "hand_failed"
        except Invalid:
            return "hand_malformed"
        return _KEPT

    def _tell_operator(self, has_keepers: bool, asked: int) -> None:
        if self._has_keepers and not has_keepers:
            log.warning("no peer keeps what is not settled", asked=asked, mend=UNKEPT_MEND)
        self._has_keepers = has_keepers

    # --- others'

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """[1, header, signature, body] → [until_ms]: kept until then, or told and settled.

        Refused: 7 not its provider's peer, 9 its number or a lane is settled, or a voucher is
        void, or a channel is another's or holds too little, 3 too soon after the last one, or our
        ledger would not take it yet, or too much is kept or to be checked.
        """
        try:
            _, *fields = decode(body, _REQUEST, PROTOCOLS["bundles"].request_max, "watching")
            bundle = Bundle(*fields)
            header = check_header(bundle)
        except Invalid as refusal:
            raise Misbehaving(str(refusal)) from None
        state = self._get_state()
        self._check_cheaply(state, peer, bundle, header)
        key = find_provider_key(state, header.provider)
        message = bundle_message(self._chain_id, bundle.header)
        if key is None or not is_signed_by(key, message, bundle.signature):
            raise Misbehaving("a bundle that its provider has not signed")
        self._take_turn(header.provider)
        kept = await self._run_blocking(self._verified, state, bundle)
        async with self._writing:
            self._check_room(bundle, header, len(kept.begins))  # another may have come meanwhile
            await self._run_blocking(self._write, kept)
            self._kept[kept.provider] = kept
        self.counters["taken"] += 1
        return encode((kept.until_ms,))

    def _check_cheaply(
        self, state: State, peer: PeerId, bundle: Bundle, header: BundleHeader
    ) -> None:
        """All that needs neither a signature nor a look into the body; raises Refused."""
        record = state.find(tables.PROVIDER, header.provider)
        if record is None or record.peer_key != peer:
            self._refuse("stranger", Code.NOT_ALLOWED)
        if find_provider_key(state, header.provider) is None:
            self._refuse("jailed", Code.NOT_ALLOWED)
        if not is_new_bundle(state, header):
            self._refuse("settled", Code.EXPIRED)
        if not served_channels(state, header.provider):  # for one, it was bonded
            self._refuse("unserved", Code.BUSY, 1_000)
        self._check_room(bundle, header)
        waited_s = trio.current_time() - self._taken_s.get(header.provider, float("-inf"))
        if waited_s < EVERY_S:
            self._refuse("soon", Code.BUSY, round(1_000 * (EVERY_S - waited_s)))

    def _check_room(self, bundle: Bundle, header: BundleHeader, lanes: int = 1) -> None:
        before = self._kept.get(header.provider)
        if before is not None and before.number >= header.bundle_seq:
            self._refuse("older", Code.EXPIRED)
        others = [kept for kept in self._kept.values() if kept is not before]
        if (
            len(others) >= KEPT_MAX
            or sum(_size(kept.bundle) for kept in others) + _size(bundle) > KEPT_BYTES_MAX
            or sum(len(kept.begins) for kept in others) + lanes > KEPT_LANES_MAX
        ):
            self._refuse("full", Code.BUSY)

    def _take_turn(self, provider: bytes) -> None:
        """A whole check is paid for by the provider whose signature asks for it."""
        now_s = trio.current_time()
        if self._turns is None:
            self._turns = TokenBucket(CHECKED_S, CHECKED_BURST, now_s)
        if not self._turns.take(now_s):
            self._refuse("busy", Code.BUSY, round(1_000 / CHECKED_S))
        self._taken_s[provider] = now_s
        while len(self._taken_s) > KEPT_MAX:
            del self._taken_s[next(iter(self._taken_s))]

    def _verified(self, state: State, bundle: Bundle) -> Kept:
        """After A1 to B4, as in a block now; raises Misbehaving or Refused. `state` is spoilt."""
        try:
            admitted = admit_bundle(state, self._chain_id, bundle)
        except Invalid as refusal:
            if refusal.facts.get("why") == "unknown channel":  # newer than our ledger
                self._refuse("unknown", Code.BUSY, 1_000)
            raise Misbehaving(str(refusal)) from None
        kept = _kept_of(bundle, self._now_ms())
        if self._is_void(state, kept):
            self._refuse("void", Code.EXPIRED)
        try:
            apply_bundle(state, self._next_block(), admitted.bundle)
        except Invalid:  # a gap before a lane, a price: our ledger may be behind
            self._refuse("unfit", Code.BUSY, 1_000)
        return kept

    def _next_block(self) -> Context:
        """What a bundle may know of it: its time."""
        return Context(
            self._chain_id,
            self._get_height() + 1,
            self._now_ms(),
            proposer=b"",
            last_signers=(),
            parent_id=b"",
        )

    def _refuse(self, why: str, code: Code, retry_ms: int = 0) -> NoReturn:
        self.counters[f"refused.{why}"] += 1
        raise Refused(code, retry_ms)

    # --- looking

    async def run(self) -> None:
        """Forever: drop what is void, tell what its provider does not."""
        while True:
            await trio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """One look: the ledger is read once a block, what waits is told when its time has come."""
        height = self._get_height()
        if height != self._height:
            self._height = height
            for kept in await self._run_blocking(self._find_void, self._get_state()):
                await self._drop(kept)
        now_s = trio.current_time()
        for kept in list(self._kept.values()):
            if not kept.is_closing:
                kept.closing_s = None
            elif kept.closing_s is None:
                kept.closing_s = now_s
            elif now_s >= max(kept.closing_s + GRACE_S, kept.told_s + AGAIN_S):
                kept.told_s = now_s
                self.counters["told"] += 1
                log.warning("tells what its provider does not", provider=kept.provider)
                await self._tell(kept.bundle)

    def _find_void(self, state: State) -> list[Kept]:
        """What no block can take any more; notes of the others whether a channel is closing."""
        void = []
        for kept in list(self._kept.values()):
            if self._is_void(state, kept):
                void.append(kept)
            else:
                kept.is_closing = any(
                    state.get(tables.CHANNEL, channel).state == tables.CHANNEL_CLOSING
                    for channel in kept.amounts
                )
        return void

    def _is_void(self, state: State, kept: Kept) -> bool:
        """A bundle settles whole: one lane that went on, or one channel, is enough."""
        if self._now_ms() >= kept.until_ms or find_provider_key(state, kept.provider) is None:
            return True
        settled = state.get(tables.PROVIDER, kept.provider).bundle_seq
        if settled >= kept.number:
            return True
        for channel, amount in kept.amounts.items():
            record = state.find(tables.CHANNEL, channel)
            if record is None or record.state == tables.CHANNEL_CLOSED:
                return True
            if record.provider != kept.provider or record.paid + amount > record.cap:
                return True
        if settled == kept.settled:
            return False
        kept.settled = settled
        return any(
            lane_of(state, channel, lane).seq >= from_seq for channel, lane, from_seq in kept.begins
        )

    async def _drop(self, kept: Kept) -> None:
        async with self._writing:
            if self._kept.get(kept.provider) is kept:
                del self._kept[kept.provider]
                await self._run_blocking(_remove, self._path(kept.provider))
        self.counters["dropped"] += 1

    # --- the files

    def _path(self, provider: bytes) -> Path:
        return self._folder / provider.hex()

    def _write(self, kept: Kept) -> None:
        """Durable before it is promised; raises Refused where it cannot be."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700, parents=True)
                sync_directory(self._folder.parent)
            write_durably(self._path(kept.provider), encode(kept.bundle))
            sync_directory(self._folder)
        except OSError as error:
            log.warning("a bundle is not kept", why=str(error))
            self._refuse("unwritten", Code.OUR_FAILURE)

    def _read_kept(self) -> None:
        for path in sorted(self._folder.glob("*")):
            try:
                fields = decode(path.read_bytes(), _FILE, _FILE_BYTES_MAX, "watching.file")
                kept = _kept_of(Bundle(*fields), self._now_ms())
                if path.name != kept.provider.hex():
                    raise Invalid("watching.name")
                self._kept[kept.provider] = kept
            except (OSError, Invalid) as error:
                self.counters["unreadable"] += 1
                log.warning("a kept bundle is lost", file=str(path), why=str(error))
                _remove(path)


def _remove(path: Path) -> None:
    """One that the disk does not let go is read again at the next start, and dropped again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("a kept bundle is not removed", file=str(path), why=str(error))


def _size(bundle: Bundle) -> int:
    return len(bundle.header) + len(bundle.body)


def _kept_of(bundle: Bundle, now_ms: int) -> Kept:
    """What we need to know of a bundle; raises Invalid where its bytes are none."""
    header, parts = check_bytes(bundle)
    sections = [decode_section(part.section) for part in parts]
    expires_ms = min(decode_voucher(section.voucher).expires_ms for section in sections)
    amounts: Counter[bytes] = Counter()
    for section in sections:
        amounts[section.channel] += section.amount
    return Kept(
        bundle=bundle,
        provider=header.provider,
        number=header.bundle_seq,
        until_ms=min(expires_ms, now_ms + KEPT_MS_MAX),
        begins=tuple((s.channel, s.lane, s.from_seq) for s in sections),
        amounts=amounts,
    )
