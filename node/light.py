"""Check receipts, payouts and balances without believing any node: offline, a step at a time.

Why steps and not a yes: a person who reads "VERIFIED" should see what was checked, what was only
compared, and what nobody but the quorum asserts. A file of several proofs is also checked across:
the payout must be of the receipt's version and block, and pay one of its credits.
What this file does not know: files, the network, and how steps are printed.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from consensus.primitives.digest import HASH_BYTES, sha256
from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock, TrustOptions, is_expired
from node.ledger import tables
from node.ledger.addresses import account_text
from node.ledger.amounts import BPS, open_text
from node.ledger.genesis import Genesis, start
from node.ledger.proofs import (
    ProofFile,
    ReceiptShown,
    Shown,
    Span,
    StateShown,
    TransactionShown,
    Trust,
    block_id_of,
    decode_proofs,
    verify_body,
    verify_link,
)
from node.ledger.wire.codes import code_name
from node.ledger.wire.payouts import TOTAL, PayoutLeaf
from node.ledger.wire.receipts import credited

LINKS = {
    "trusted": "it is the block that you trust",
    "certificate": "more than 2/3 of the validators' power signed it",
    "history": "it stands in the history of the block that you trust",
}
PURPOSES = {
    TOTAL: "all fees",
    tables.KIND_PROVIDER: "provider",
    tables.KIND_DATA: "data",
    tables.KIND_CREATOR: "creator",
    tables.KIND_STAKERS: "stakers",
    tables.KIND_FUND: "maintenance fund",
    tables.KIND_TREASURY: "treasury",
    tables.KIND_BURN: "burn",
}
CHANNEL_STATES = {
    tables.CHANNEL_OPEN: "open",
    tables.CHANNEL_CLOSING: "closing",
    tables.CHANNEL_CLOSED: "closed",
}
VERSION_STATUS = {tables.VERSION_CURRENT: "current", tables.VERSION_SUPERSEDED: "superseded"}


class Step(NamedTuple):
    """One check that held: what was checked, and the figures."""

    what: str
    detail: str


class Checked(NamedTuple):
    """A proof that holds: the block it is of, and what it shows."""

    height: int
    block_id: bytes
    shown: Shown


class Report(NamedTuple):
    """The steps that held, in order. `refusal` is None when all did: VERIFIED."""

    steps: tuple[Step, ...]
    proofs: tuple[Checked, ...]
    refusal: Invalid | None
    asserted: tuple[str, ...]  # what only the quorum asserts

    @property
    def shown(self) -> list[str]:
        """What each proof shows, in words."""
        return [_told(proof.shown)[1] for proof in self.proofs]


def trust_genesis(genesis: Genesis) -> Trust:
    """Believe the genesis: its chain id and its validators, as long as their powers stay."""
    return Trust(genesis.chain_id, (start(genesis).validators,))


def trust_block(height: int, block_id: bytes, raw: bytes) -> Trust:
    """Believe one block, of whatever chain the proof file `raw` names: the id commits to it."""
    try:
        chain_id = decode_proofs(raw)[0].chain_id
    except Invalid:
        chain_id = bytes(HASH_BYTES)  # `examine` tells what is wrong with the file
    return Trust(chain_id, (), {height: block_id})


def trust_options(genesis: Genesis) -> TrustOptions:
    """The usual options; the period is never above two thirds of the time that bonds are locked."""
    unbonding_ms = dict(genesis.parameters)[b"unbonding_ms"][0]
    usual = TrustOptions()
    return replace(usual, period_ms=max(1, min(usual.period_ms, unbonding_ms * 2 // 3)))


def trust_light_blocks(
    chain_id: bytes, blocks: Sequence[LightBlock], options: TrustOptions, now_ms: int
) -> Trust:
    """Believe light blocks that a client followed, ascending, and what they tell of other heights.

    Between two of them whose set is the same, that set signed, as long as the lower has not
    expired: after that its members may have left, and could sign any old block unpunished. Then,
    and above the newest, only a history proof of a block that is here will do.
    """
    spans = [
        Span(lower.height + 1, upper.height - 1, lower.next_validators)
        for lower, upper in pairwise(blocks)
        if lower.header.next_validators_hash == upper.header.validators_hash
        and not is_expired(lower, options, now_ms)
    ]
    return Trust(chain_id, (), {block.height: block.block_id for block in blocks}, tuple(spans))


def examine(raw: bytes, trust: Trust) -> Report:
    """Check a proof file step by step; never raises for what is in it."""
    steps: list[Step] = []
    checked: list[Checked] = []
    refusal: Invalid | None = None
    try:
        proofs = decode_proofs(raw)
        steps.append(Step("the file is well-formed", f"{len(raw)} bytes, {len(proofs)} proofs"))
        for proof in proofs:
            checked.append(_check_proof(proof, trust, checked, steps))
        _check_across(checked, steps)
    except Invalid as error:
        refusal = error
    return Report(tuple(steps), tuple(checked), refusal, _asserted(checked))


def verify_file(raw: bytes, trust: Trust) -> Report:
    """The same, but raises the `Invalid` of the first step that fails."""
    report = examine(raw, trust)
    if report.refusal is not None:
        raise report.refusal
    return report


def _check_proof(
    proof: ProofFile, trust: Trust, before: Sequence[Checked], steps: list[Step]
) -> Checked:
    shown = verify_body(proof)
    steps.append(Step(*_told(shown)))
    block_id = block_id_of(proof)
    told = f"height {proof.height}, block {block_id.hex()[:16]}…"
    steps.append(Step("its root is a field of a header", told))
    steps.append(Step("the header was agreed on", _agreed_on(proof, block_id, trust, before)))
    return Checked(proof.height, block_id, shown)


def _agreed_on(proof: ProofFile, block_id: bytes, trust: Trust, before: Sequence[Checked]) -> str:
    """Why the block is believed; without a link of its own, by that of an earlier proof of it."""
    is_known = any((known.height, known.block_id) == (proof.height, block_id) for known in before)
    if proof.link or not is_known:
        return LINKS[verify_link(proof, block_id, trust)]
    verify_link(proof, block_id, trust._replace(blocks={proof.height: block_id}))
    return "it is the block of a proof before it"


def _told(shown: Shown) -> tuple[str, str]:
    """What a proof's body shows, in words."""
    if isinstance(shown, ReceiptShown):
        receipt = shown.receipt
        told = (
            f"receipt {sha256(shown.raw).hex()[:16]}… of {account_text(shown.bundle.provider)}: "
            f"model {receipt.model} version {receipt.model_version}, {receipt.tokens_in} tokens "
            f"in, {receipt.tokens_out} out, fee {open_text(receipt.fee)}, "
            f"{len(credited(shown.credits))} contributions credited{_fund_text(shown)}"
        )
        return "the receipt stands in a settled bundle, its credits hash to what it says", told
    if isinstance(shown, PayoutLeaf):
        told = f"{PURPOSES.get(shown.kind, 'kind ' + str(shown.kind))}: {payee_text(shown)}"
        told += f" gets {open_text(shown.amount)} of {open_text(shown.part)}"
        return "the payout is its exact share of the part", told
    if isinstance(shown, TransactionShown):
        told = f"{shown.tx.type_name} of {account_text(shown.tx.sender)}: {code_name(shown.code)}"
        return "the transaction stands in the block with its code", told
    return "the state entry is under the state root", _state_told(shown)


def _state_told(shown: StateShown) -> str:
    """The record in words, if its table is one that is proved to people; else in hex."""
    name = _key_told(shown.key)
    if shown.value is None:
        return f"{name} is absent"
    table = shown.key[:1]
    if table == tables.ACCOUNT.prefix:
        return f"{name} holds {open_text(tables.ACCOUNT.decode(shown.value).balance)}"
    if table == tables.CONTRIBUTION.prefix:
        found = tables.CONTRIBUTION.decode(shown.value)
        owner = account_text(found.contributor)
        return f"{name} of {owner} has earned {open_text(found.earned)}"
    if table == tables.CHANNEL.prefix:
        return f"{name} {_channel_told(tables.CHANNEL.decode(shown.value))}"
    if table == tables.VERSION.prefix:
        version = tables.VERSION.decode(shown.value)
        word = VERSION_STATUS.get(version.status, f"of status {version.status}")
        return f"{name} is {word}, its adapter {version.adapter.hex()[:16] or 'none'}"
    return f"{name} = {shown.value.hex()[:64]}"


def _key_told(key: bytes) -> str:
    """What a flat key of the state names; hex for one that people have no word for."""
    table, rest = key[:1], key[1:]
    number = int.from_bytes(rest[:8], "big")
    match table, len(rest):
        case tables.ACCOUNT.prefix, 32:
            return f"account {account_text(rest)}"
        case tables.CHANNEL.prefix, 32:
            return f"channel {rest.hex()[:16]}…"
        case tables.CONTRIBUTION.prefix, 8:
            return f"contribution {number}"
        case tables.VERSION.prefix, 12:
            return f"model {number} version {int.from_bytes(rest[8:], 'big')}"
        case _:
            return f"{key.hex()[:32]}…"


def _channel_told(channel: tables.Channel) -> str:
    """Whose it is, and what of its cap is paid."""
    word = CHANNEL_STATES.get(channel.state, f"of state {channel.state}")
    return (
        f"of {account_text(channel.payer)} to {account_text(channel.provider)} is {word}: "
        f"{open_text(channel.paid)} paid of {open_text(channel.cap)}"
    )


def _check_across(checked: list[Checked], steps: list[Step]) -> None:
    """Receipts and payouts of one file belong together; raises `Invalid` `proof.across`."""
    receipts = [(c, c.shown) for c in checked if isinstance(c.shown, ReceiptShown)]
    payouts = [(c, c.shown) for c in checked if isinstance(c.shown, PayoutLeaf)]
    heights: dict[int, bytes] = {}
    for proof in checked:
        if heights.setdefault(proof.height, proof.block_id) != proof.block_id:
            raise Invalid("proof.across", why="two blocks of one height", height=proof.height)
    if not receipts:
        return
    for proof, leaf in payouts:
        share_bps = _credit_of(leaf, proof.height, receipts)
        if leaf.kind == tables.KIND_DATA and leaf.payee:
            number = int.from_bytes(leaf.payee, "big")
            told = f"contribution {number} has {share_bps} bps of the receipt's data part"
            steps.append(Step("the payout pays a credit of the receipt", told))
        else:
            told = f"height {proof.height}, model {leaf.model} version {leaf.version}"
            steps.append(Step("the payout is of the receipt's block and version", told))


def _credit_of(
    leaf: PayoutLeaf, height: int, receipts: list[tuple[Checked, ReceiptShown]]
) -> int:  # bps of the leaf's contribution in a receipt of its version and block
    for proof, shown in receipts:
        which = (proof.height, shown.receipt.model, shown.receipt.model_version)
        if which != (height, leaf.model, leaf.version):
            continue
        if leaf.kind != tables.KIND_DATA or not leaf.payee:
            return BPS
        shares = dict(shown.credits)
        number = int.from_bytes(leaf.payee, "big")
        if number in shares:
            return shares[number]
    raise Invalid("proof.across", why="the payout is of no receipt here", height=height)


def _asserted(checked: list[Checked]) -> tuple[str, ...]:
    told = []
    if any(isinstance(proof.shown, PayoutLeaf) for proof in checked):
        told.append("that the weights of a payout count all receipts of its block is the quorum's")
    if any(isinstance(proof.shown, ReceiptShown) for proof in checked):
        told.append("that the credits fit the answer is checked by holders of the index")
    return tuple(told)


def _fund_text(shown: ReceiptShown) -> str:
    to_fund = BPS - sum(bps for _, bps in credited(shown.credits))
    return f", {to_fund} bps of the data part to the model's fund" if to_fund else ""


def payee_text(leaf: PayoutLeaf) -> str:
    """An account, a contribution, a model's fund, or the pool."""
    if len(leaf.payee) == 32:
        return account_text(leaf.payee)
    if len(leaf.payee) == 8:
        noun = "contribution" if leaf.kind == tables.KIND_DATA else "model"
        return f"{noun} {int.from_bytes(leaf.payee, 'big')}"
    return "the model's fund" if leaf.kind == tables.KIND_DATA else "the pool"
