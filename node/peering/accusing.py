"""Evidence that waits to be proposed: from our own engine and from gossip, judged at the door.

Why it is judged before it is relayed: evidence costs its sender nothing and every node two
signature checks, so what no block could hold goes no further. Why few pieces of one offender: one
is enough to punish it, and only it can make more.
Evidence of the height being decided is kept until that is decided: only then has it a time.
What this file does not know: what an offence costs, who proposes, how gossip travels.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from consensus.evidence import (
    Evidence,
    accused_members,
    decode_evidence,
    evidence_height,
    verify_evidence,
)
from consensus.primitives.errors import Invalid
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

# Nobody's fault: blocks have moved on, or we are behind.
_IGNORED: Final = frozenset(
    {
        "evidence.used",
        "evidence.height",
        "evidence.too_old",
        "evidence.punished",
        "evidence.known",
        "evidence.full",
    }
)

log = get_log("consensus")


class _Held(NamedTuple):
    """A piece that was judged good by `past`, which is a guess while its height is open."""

    evidence: Evidence
    past: PastHeight
    is_open: bool
    accused: tuple[bytes, ...]


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
        """Gossip: pool it and tell it on, or say whose fault it is. Two signatures at most."""
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
        tip_height = self._get_view().tip.height
        picked: list[bytes] = []
        room = EVIDENCE_BYTES_MAX
        for raw, held in self._held.items():
            if held.past.height <= tip_height and len(raw) <= room:
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
            past = _find_past(view, held.evidence) if held.is_open else held.past
            try:
                self._check(view, state, raw, held.evidence, past)
            except Invalid as refusal:
                self.counters[refusal.code] += 1
                del self._held[raw]
            else:
                assert past is not None
                is_open = past.height > view.tip.height
                self._held[raw] = held._replace(past=past, is_open=is_open)

    def _take(self, raw: bytes) -> None:
        """Into the pool, or `Invalid`; the cheapest check first, the signatures last."""
        if raw in self._held:
            raise Invalid("evidence.known")
        evidence = decode_evidence(raw)
        view = self._get_view()
        past = self._check(view, view.state(), raw, evidence, _find_past(view, evidence))
        accused = accused_members(evidence, past.validators)
        self._check_room(raw, accused)
        verify_evidence(evidence, past.validators, self._chain_id)
        self._held[raw] = _Held(evidence, past, past.height > view.tip.height, accused)
        self.counters["pooled"] += 1
        self._on_pooled()

    def _check(
        self, view: View, state: State, raw: bytes, evidence: Evidence, past: PastHeight | None
    ) -> PastHeight:
        """What the next block would ask, but for the signatures; raises `Invalid` `evidence.…`."""
        tip = view.tip
        context = Context(
            chain_id=self._chain_id,
            height=tip.height + 1,
            time_ms=tip.time_ms,
            proposer=b"",
            last_signers=(),
            parent_id=tip.block_id,
            past=() if past is None else (past,),
        )
        return check_evidence(state, context, raw, evidence)

    def _check_room(self, raw: bytes, accused: tuple[bytes, ...]) -> None:
        if len(self._held) >= PIECES_MAX or sum(map(len, self._held)) + len(raw) > BYTES_MAX:
            raise Invalid("evidence.full")
        for key in accused:
            if sum(key in held.accused for held in self._held.values()) >= PER_OFFENDER_MAX:
                raise Invalid("evidence.full", key=key)


def _find_past(view: View, evidence: Evidence) -> PastHeight | None:
    """By what a piece is judged. The open height has no time yet, but is no older than the tip."""
    height, tip = evidence_height(evidence), view.tip
    if height == tip.height + 1:
        return PastHeight(height, tip.time_ms, tip.validators)
    return view.find_past(height)
