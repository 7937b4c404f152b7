"""Evidence that waits to be proposed: from our own engine, from gossip and from light clients.

Why it is judged before it is relayed: evidence costs its sender nothing and every node two
signature checks or a quorum's, so what no block could hold goes no further. Why few pieces of one
offender: one is enough to punish it, and only it can make more.
Evidence of the height being decided is kept until that is decided: only then has it a time. A lie
to light clients about the newest block waits for the next one, which carries the commit that all
nodes judge it by; until then it is judged by ours.
What this file does not know: what an offence costs, who proposes, how gossip travels.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from consensus.attacks import LightClientAttack
from consensus.primitives.errors import Invalid
from node.ledger.accusations import (
    Accusation,
    Charge,
    decode_accusation,
    past_heights,
    verify_accusation,
)
from node.ledger.context import Context, PastHeight
from node.ledger.rules.offences import check_evidence
from node.ledger.state import State
from node.ledger.wire.blocks import EVIDENCE_BYTES_MAX, EVIDENCE_MAX
from node.observe import get_log
from node.storage.views import View
from p2p.network import Verdict

PIECES_MAX: Final = 128
BYTES_MAX: Final = 1 << 20
PER_OFFENDER_MAX: Final = 2

# Nobody's fault: blocks have moved on, we are behind, or the sender holds another commit.
_IGNORED: Final = frozenset(
    {
        "evidence.used",
        "evidence.height",
        "evidence.before_snapshot",
        "evidence.amnesia",
        "evidence.too_old",
        "evidence.punished",
        "evidence.known",
        "evidence.full",
    }
)

log = get_log("consensus")


class _Held(NamedTuple):
    """A piece that was judged good by `past`, which is a guess while its height is open."""

    accusation: Accusation
    past: tuple[PastHeight, ...]
    is_open: bool
    charge: Charge


class Accusing:
    """The pool of evidence. `on_pooled` is called when there is something new to propose."""

    def __init__(
        self,
        *,
        chain_id: bytes,
        get_view: Callable[[], View],
        on_pooled: Callable[[], None] = lambda: None,
    ) -> None:
        self._chain_id = chain_id
        self._get_view = get_view
        self._on_pooled = on_pooled
        self._held: dict[bytes, _Held] = {}  # by their bytes, oldest first
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def judge(self, raw: bytes) -> Verdict:
        """Pool it, to be told on, or say whose fault it is. A quorum's signatures at most."""
        try:
            self._take(raw)
        except Invalid as refusal:
            self.counters[refusal.code] += 1
            return Verdict.IGNORE if refusal.code in _IGNORED else Verdict.REJECT
        return Verdict.ACCEPT

    def add(self, raw: bytes) -> None:
        """What our own engine found; what no block could hold is counted and let go."""
        try:
            self._take(raw)
        except Invalid as refusal:
            self.counters[refusal.code] += 1
            log.debug("our accusation is not pooled", code=refusal.code)

    def pick(self) -> list[bytes]:
        """What may go into the next block: of decided heights, within a payload's limits."""
        picked: list[bytes] = []
        room = EVIDENCE_BYTES_MAX
        for raw, held in self._held.items():
            if not held.is_open and len(raw) <= room:
                picked.append(raw)
                room -= len(raw)
            if len(picked) == EVIDENCE_MAX:
                break
        return picked

    def drop(self, raw: bytes) -> None:
        """Let go of a piece that a rehearsal refused."""
        self._held.pop(raw, None)

    def review(self) -> None:
        """After a block: let go of what it used, of whom it punished, of what is too old."""
        view = self._get_view()
        state = view.state()
        for raw, held in list(self._held.items()):
            past, is_open = held.past, held.is_open
            try:
                if is_open:
                    past, is_open = _look_up(view, held.accusation)
                charge = self._check(view, state, raw, held.accusation, past)
            except Invalid as refusal:
                self.counters[refusal.code] += 1
                del self._held[raw]
            else:
                self._held[raw] = _Held(held.accusation, past, is_open, charge)

    def _take(self, raw: bytes) -> None:
        """Into the pool, or `Invalid`; the cheapest check first, the signatures last."""
        if raw in self._held:
            raise Invalid("evidence.known")
        accusation = decode_accusation(raw)
        view = self._get_view()
        past, is_open = _look_up(view, accusation)
        charge = self._check(view, view.state(), raw, accusation, past)
        self._check_room(raw, charge)
        verify_accusation(accusation, charge, self._chain_id)
        self._held[raw] = _Held(accusation, past, is_open, charge)
        self.counters["pooled"] += 1
        self._on_pooled()

    def _check(
        self,
        view: View,
        state: State,
        raw: bytes,
        accusation: Accusation,
        past: tuple[PastHeight, ...],
    ) -> Charge:
        """What the next block would ask, but for the signatures; raises `Invalid`."""
        tip = view.tip
        context = Context(
            chain_id=self._chain_id,
            height=tip.height + 1,
            time_ms=tip.time_ms,
            proposer=b"",
            last_signers=(),
            parent_id=tip.block_id,
            past=past,
        )
        return check_evidence(state, context, raw, accusation)

    def _check_room(self, raw: bytes, charge: Charge) -> None:
        """Room for the bytes, and for one more piece that may punish one of the accused."""
        if len(self._held) >= PIECES_MAX or sum(map(len, self._held)) + len(raw) > BYTES_MAX:
            raise Invalid("evidence.full")
        alike = [held.charge for held in self._held.values()]
        alike = [other for other in alike if other.freezes == charge.freezes]
        for key in charge.accused:
            if sum(key in other.accused for other in alike) < PER_OFFENDER_MAX:
                return
        raise Invalid("evidence.full", accused=len(charge.accused))


def _look_up(view: View, accusation: Accusation) -> tuple[tuple[PastHeight, ...], bool]:
    """By what a piece is judged, and whether a guess is among it; raises `Invalid`."""
    heights = past_heights(accusation)
    if min(heights) < view.earliest - 1:
        # Whoever saw that height proposes it; asking peers for it costs too much for gossip.
        raise Invalid("evidence.before_snapshot", height=min(heights))
    found = {height: view.find_past(height) for height in heights}
    guess = _guess(view, accusation)
    if guess is not None:
        found[guess.height] = guess
    return tuple(past for past in found.values() if past is not None), guess is not None


def _guess(view: View, accusation: Accusation) -> PastHeight | None:
    """The height of the offence while the chain does not hold all of it."""
    height, tip = past_heights(accusation)[-1], view.tip
    if not isinstance(accusation, LightClientAttack):
        # It has no time yet, but is no older than the tip.
        is_open = height == tip.height + 1
        return PastHeight(height, tip.time_ms, tip.validators) if is_open else None
    past = view.find_past(height) if height == tip.height else None
    return None if past is None else past._replace(decided=view.find_decided(height))
