"""Answering light clients: headers with their sets, proofs of state and receipts, history paths.

Why a full node answers: all that is asked for proves itself, so it costs no trust, only bytes.
Evidence of an attack is taken in the other direction: it is judged against our own chain, and what
proves nothing here costs its sender points, for each piece costs us a quorum's signatures.
What this file does not know: who asks, and what becomes of evidence that holds.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from consensus.attacks import (
    LightClientAttack,
    Verdict,
    decode_attack,
    nearest,
    verify_attack,
)
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.pastblocks import encode_past_block
from consensus.primitives.encoding import (
    U8,
    U32,
    U63,
    Bytes,
    H,
    ListOf,
    Record,
    Shape,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.skipping import encode_light_block
from node.ledger.proofs import encode_proof
from node.storage.proving import receipt_proof, state_proof
from node.storage.views import View
from p2p.errors import Code, Misbehaving, Refused
from p2p.limits import PROTOCOLS
from p2p.network import Network, PeerId

PROTOCOL: Final = "light"
LIMITS: Final = PROTOCOLS[PROTOCOL]
BLOCK, STATE, RECEIPT, HISTORY, EVIDENCE, PAST = range(6)
KEYS_MAX: Final = 64
KEY_BYTES_MAX: Final = 128

_QUESTIONS: Final[dict[int, Shape]] = {
    BLOCK: Record(U8, U63),
    STATE: Record(U8, U63, ListOf(Bytes(KEY_BYTES_MAX, 1), KEYS_MAX, 1)),
    RECEIPT: Record(U8, H, U32),
    HISTORY: Record(U8, U63, U63),
    EVIDENCE: Record(U8, Bytes(EVIDENCE_BYTES_MAX, 1)),
    PAST: Record(U8, U63, U63),
}

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
TakeAttack = Callable[[LightClientAttack, Verdict], Awaitable[None]]


def judge_attack(view: View, attack: LightClientAttack) -> Verdict:
    """What an attack proves on this chain; `Invalid` if nothing, `Refused` if we are not there."""
    own = view.find_decided(attack.block.height)
    announced = view.validators(attack.common_height + 1)
    if own is None or announced is None:
        raise Refused(Code.NOT_FOUND, body=_held(view))
    return verify_attack(attack, announced, own)


class LightServer:
    """Serves `light` of page 70 §6. `take_attack` gets each attack that holds."""

    def __init__(
        self,
        *,
        get_view: Callable[[], View],
        take_attack: TakeAttack,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._get_view = get_view
        self._take_attack = take_attack
        self._run_blocking = run_blocking

    def serve(self, network: Network) -> None:
        """Answer on this network from now on."""
        network.serve(PROTOCOL, self.answer, LIMITS)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """The reply's body to one question of page 70's table."""
        kind = body[1] if len(body) > 1 else -1  # behind the one byte of the array's head
        if kind not in _QUESTIONS:
            raise Misbehaving("no such question of light clients")
        try:
            _, *asked = decode(body, _QUESTIONS[kind], LIMITS.request_max, "light.request")
            return await self._answer(kind, asked)
        except Invalid as refusal:
            raise Misbehaving(str(refusal)) from None

    async def _answer(self, kind: int, asked: list[Any]) -> bytes:
        view = self._get_view()
        if kind == EVIDENCE:
            attack = decode_attack(*asked)
            verdict = await self._run_blocking(judge_attack, view, attack)
            await self._take_attack(nearest(attack, verdict), verdict)
            return encode(())
        found: bytes | None = await self._run_blocking(_FINDERS[kind], view, *asked)
        if found is None:
            raise Refused(Code.NOT_FOUND, body=_held(view))
        if len(found) > LIMITS.reply_max:
            raise Refused(Code.REPLY_TOO_LARGE)
        return found


def _held(view: View) -> bytes:
    """The heights that may be asked for; none is held that is older than our snapshot."""
    return encode((min(view.earliest, view.height), view.height))


def _find_block(view: View, height: int) -> bytes | None:
    block = view.light_block(height or view.height)
    return None if block is None else encode_light_block(block)


def _find_state(view: View, height: int, keys: tuple[bytes, ...]) -> bytes | None:
    """Proofs of the newest state alone: of older ones only the tree is kept, not the values."""
    if height not in (0, view.height):
        return None
    proofs = [proof for key in keys if (proof := state_proof(view, key)) is not None]
    return encode([encode_proof(proof) for proof in proofs]) if proofs else None


def _find_receipt(view: View, bundle_hash: bytes, index: int) -> bytes | None:
    found = view.receipt_at(bundle_hash, index)
    if found is None or view.is_pruned(found.height):
        return None
    proof = receipt_proof(view, found)
    return None if proof is None else encode((encode_proof(proof),))


def _find_history(view: View, height: int, at: int) -> bytes | None:
    if not view.earliest <= height < at <= view.height:
        return None
    return encode((view.get_header(height).block_id(), view.history_path(height, at)))


def _find_past(view: View, height: int, at: int) -> bytes | None:
    """For nodes that began with a snapshot and judge evidence from before it."""
    past = view.past_block(height, at)
    return None if past is None else encode_past_block(past)


_FINDERS: Final[dict[int, Callable[..., bytes | None]]] = {
    BLOCK: _find_block,
    STATE: _find_state,
    RECEIPT: _find_receipt,
    HISTORY: _find_history,
    PAST: _find_past,
}
