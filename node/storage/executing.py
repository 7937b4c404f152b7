"""One step of the chain: check a block against its parent, execute it, compare the whole header.

Why the cheap checks come first and the last certificate before execution: a block costs its
proposer nothing to invent. Why the whole header is compared: every root in it is one that light
clients will rely on, and what we did not compute ourselves we do not vote for.
What this file does not know: rounds and turns (the replica checks those), and the disk's layout.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from consensus.certificate import (
    PRECOMMIT,
    Certificate,
    decode_certificate,
    encode_certificate,
    verify_certificate,
)
from consensus.header import HEADER_VERSION, Header, encode_header
from consensus.primitives.digest import HASH_BYTES, sha256
from consensus.primitives.errors import Invalid
from node.ledger import tree
from node.ledger.accusations import decode_accusation, past_heights
from node.ledger.admission import Admitted
from node.ledger.context import Context, PastHeight
from node.ledger.execute import Outcome, execute_block, make_header, rules_for
from node.ledger.state import State
from node.ledger.wire.blocks import Block, Payload, decode_payload, encode_payload
from node.ledger.wire.bundles import Bundle, FalseSignature
from node.storage import history
from node.storage.bundlestore import BundleStore
from node.storage.errors import DatabaseDamaged, MissingData
from node.storage.pasts import MissingPast
from node.storage.store import Reader
from node.storage.views import Tip, base_of

NO_COMMIT: Final = bytes(HASH_BYTES)  # last_commit_hash of height 1

Known = Mapping[bytes, Admitted]  # bundle hash → what its check gave, and with which keys
FindPast = Callable[[int], PastHeight | None]  # None: not decided yet; raises `MissingPast`
NOTHING_KNOWN: Final[Known] = MappingProxyType({})
# Where these are as the header says, the payload executed is the one that the header is of.
PAYLOAD_ROOTS: Final = ("txs_root", "bundles_root", "evidence_root")


class MissingBodies(MissingData):
    """Bundles that a block names and we lack."""

    def __init__(self, hashes: tuple[bytes, ...]) -> None:
        super().__init__(f"{len(hashes)} bundles are missing")
        self.hashes = hashes


class FinalRefusal(Invalid):
    """The block itself breaks a rule: no other bytes under its id can be judged otherwise."""


class DoubtfulBytes(Invalid):
    """A decided block is refused for bytes that may not be its own: who gave them chose them."""

    def __init__(self, refusal: Invalid, block: Block) -> None:
        super().__init__(refusal.code, **refusal.facts)
        self.block = block


class Executed(NamedTuple):
    """A block that keeps every rule, with all that committing it will write."""

    block_id: bytes
    block: Block
    header: Header
    payload: Payload
    bundles: Mapping[bytes, Bundle]
    outcome: Outcome


class Parent(NamedTuple):
    """What the next block builds on: the tip, a reader of exactly that moment, the past."""

    chain_id: bytes
    app_version: int
    reader: Reader
    tip: Tip
    find_past: FindPast


def build_block(
    parent: Parent,
    bundles: BundleStore,
    known: Known,
    *,
    proposer: bytes,
    time_ms: int,
    payload: Payload,
    last_certificate: Certificate | None,
) -> Executed:
    """The next block with `payload`; raises `Invalid` if it breaks a rule, `MissingData`."""
    assert time_ms > parent.tip.time_ms, "wait until the clock is past the parent's time"
    raw = b"" if last_certificate is None else encode_certificate(last_certificate)
    bodies = get_bodies(payload, bundles)
    header, outcome = _run(parent, proposer, time_ms, payload, raw, bodies, known)
    block = Block(encode_header(header), encode_payload(payload), raw)
    return Executed(header.block_id(), block, header, payload, bodies, outcome)


def execute_next(
    parent: Parent, bundles: BundleStore, known: Known, block: Block, header: Header
) -> Executed:
    """A block whose header and last certificate are checked, executed.

    Raises `Invalid` with the first rule that its payload breaks, and `MissingData`.

    Such a refusal is of these bytes: the id binds the payload only through roots that execution
    gives, so another payload under the same header may be good. Where those roots are the
    header's and what else follows from them is not, it is a `FinalRefusal`.
    """
    payload = decode_payload(block.payload)
    bodies = get_bodies(payload, bundles)
    try:
        made, outcome = _run(
            parent, header.proposer, header.time_ms, payload, block.last_certificate, bodies, known
        )
    except FalseSignature as refusal:
        # Who gave us the body chose its signature: no verdict on a block that names the hash.
        bundles.refute(refusal.bundle_hash)
        raise MissingBodies((refusal.bundle_hash,)) from refusal
    _compare(header, made)
    return Executed(header.block_id(), block, header, payload, bodies, outcome)


def _compare(header: Header, made: Header) -> None:
    fields = zip(header._fields, header, made, strict=True)
    differing = [(name, told, found) for name, told, found in fields if told != found]
    if differing:
        name, told, found = differing[0]
        is_ours = all(name not in PAYLOAD_ROOTS for name, _, _ in differing)
        refusal = FinalRefusal if is_ours else Invalid
        raise refusal("block.header", field=name, told=told, found=found)


def verify_decided(parent: Parent, header: Header, certificate: Certificate) -> None:
    """Raise `Invalid` unless `certificate` decides the block of `header` as the next one."""
    expected = (PRECOMMIT, parent.tip.height + 1, header.block_id())
    if (certificate.kind, certificate.height, certificate.block_id) != expected:
        raise Invalid("certificate.block", height=certificate.height)
    verify_certificate(certificate, parent.tip.validators, parent.chain_id)


def get_bodies(payload: Payload, bundles: BundleStore) -> dict[bytes, Bundle]:
    """Every bundle that a payload names, or `MissingBodies`."""
    found = {name: bundles.get(name) for name in payload.bundles}
    missing = tuple(name for name, bundle in found.items() if bundle is None)
    if missing:
        raise MissingBodies(missing)
    return {name: bundle for name, bundle in found.items() if bundle is not None}


def named_heights(evidence: Iterable[bytes]) -> list[int]:
    """The heights that pieces of evidence speak of; raises `Invalid` `evidence.…`."""
    accusations = [decode_accusation(raw) for raw in evidence]
    return sorted({height for one in accusations for height in past_heights(one)})


def past_of(find_past: FindPast, evidence: Iterable[bytes]) -> tuple[PastHeight, ...]:
    """What is known of those heights, as far as they are decided.

    Raises `Invalid` `evidence.…`, and `MissingPast` with all that must be fetched first.
    """
    found: list[PastHeight] = []
    missing: list[int] = []
    for height in named_heights(evidence):
        try:
            past = find_past(height)
        except MissingPast as lacking:
            missing += lacking.heights
        else:
            found += [] if past is None else [past]
    if missing:
        raise MissingPast(tuple(missing))
    return tuple(found)


def _run(
    parent: Parent,
    proposer: bytes,
    time_ms: int,
    payload: Payload,
    last_raw: bytes,
    bodies: Mapping[bytes, Bundle],
    known: Known,
) -> tuple[Header, Outcome]:
    tip = parent.tip
    context = Context(
        chain_id=parent.chain_id,
        height=tip.height + 1,
        time_ms=time_ms,
        proposer=proposer,
        last_signers=_last_signers(parent, last_raw),
        parent_id=tip.block_id,
        past=past_of(parent.find_past, payload.evidence),
    )
    state = State(base_of(parent.reader, tip.height))
    rules = rules_for(parent.app_version)
    try:
        outcome = execute_block(rules, state, context, payload, bodies, known)
    except tree.MissingNode as error:
        raise DatabaseDamaged("the state tree lacks a node", why=str(error)) from error
    header = make_header(
        context,
        outcome,
        validators_hash=tip.validators.hash(),
        last_commit_hash=sha256(last_raw) if last_raw else NO_COMMIT,
        history_root=history.root(parent.reader, tip.height),
    )
    return header, outcome


def _last_signers(parent: Parent, last_raw: bytes) -> tuple[bytes, ...]:
    if parent.tip.signers is None:
        return ()
    members = parent.tip.signers.members
    return tuple(members[place].key for place in decode_certificate(last_raw).signers())


def check_header(parent: Parent, header: Header) -> None:
    """What needs the header alone (page 20 §4): a refusal here is of its id, for good.

    The turn of the proposer is the replica's to check. Raises `FinalRefusal` `block.…`.
    """
    tip = parent.tip
    if header.version != HEADER_VERSION:
        raise FinalRefusal("block.version", version=header.version)
    if header.app_version != parent.app_version:
        raise FinalRefusal("block.app_version", app_version=header.app_version)
    if header.chain_id != parent.chain_id:
        raise FinalRefusal("block.chain_id")
    if header.height != tip.height + 1:
        raise FinalRefusal("block.height", height=header.height, tip=tip.height)
    if header.parent_id != tip.block_id:
        raise FinalRefusal("block.parent_id")
    if header.time_ms <= tip.time_ms:
        raise FinalRefusal("block.time", time_ms=header.time_ms, parent_ms=tip.time_ms)
    if tip.validators.index(header.proposer) is None:
        raise FinalRefusal("block.proposer", proposer=header.proposer)
    if header.validators_hash != tip.validators.hash():
        raise FinalRefusal("block.validators_hash")
    if header.history_root != history.root(parent.reader, tip.height):
        raise FinalRefusal("block.history_root")


def check_last_commit(parent: Parent, block: Block, header: Header) -> None:
    """The block's last certificate is the one its header names, and decides our tip.

    Costs the quorum's signatures. Raises `Invalid` `block.last_…`, `certificate.…`.
    """
    tip, raw = parent.tip, block.last_certificate
    if header.last_commit_hash != (sha256(raw) if raw else NO_COMMIT):
        raise Invalid("block.last_commit_hash")
    if tip.signers is None:
        if raw:
            raise Invalid("block.last_certificate", why="there is no block before the first")
        return
    certificate = decode_certificate(raw)
    if (certificate.kind, certificate.height) != (PRECOMMIT, tip.height):
        raise Invalid("block.last_certificate", height=certificate.height)
    if certificate.block_id != tip.block_id:
        raise Invalid("block.last_certificate", why="of another block")
    if certificate != tip.certificate:  # ours is verified; the proposer's may be fuller
        verify_certificate(certificate, tip.signers, parent.chain_id)
