"""A small chain that touches every rule: what it must give, by height, on every machine for ever.

Genesis of four validators; every type of transaction, accepted and refused; bundles acknowledged
and claimed from the hold; a composite version; a validator that joins; and jumps in time over which
payouts mature, deposits return, channels close and are forgotten.
"""

import random
from typing import Any

from bundle_kit import LaneSession, Party, party
from chain_kit import START_MS, TinyChain, accusation, coop_close, rotation

from consensus.primitives.digest import sha256
from node.ledger import genesis as genesis_file
from node.ledger import tables
from node.ledger.amounts import GRAINS_PER_OPEN as OPEN
from node.ledger.execute import Outcome
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import build_bundle
from node.ledger.wire.openings import (
    SHARES,
    ReceiptSubject,
    SharesOpened,
    encode_opening,
    open_receipt,
)
from node.ledger.wire.orders import channel_id

VALIDATORS = tuple(party(f"validator {number}") for number in range(4))
PROVIDER, NEWCOMER = VALIDATORS[0], party("faucet")
STEWARD, CREATOR, PAYER = party("steward"), party("creator"), party("payer")
ANA, ANAS_NEW = party("ana"), party("ana's new key")
GIVERS = tuple(party(f"giver {number}") for number in range(3))
TERMS = (sha256(b"charter"), (1, 7), 0, 1, 100_000, 500, 600_000, 0)
PRICES = (21_200_000_000, 63_600_000_000, 1_000_000)
MINUTE_MS, DAY_MS = 60_000, 86_400_000
ANSWER = {
    "order_hash": sha256(b"order"), "model": 1, "model_version": 1, "tokens_in": 812,
    "tokens_out": 143, "fee": 27_309_200, "answer_root": sha256(b"answer"),
    "sketch_hash": sha256(b"sketch"), "fingerprint_hash": sha256(b"fingerprint"),
    "started_ms": START_MS, "finished_ms": START_MS + 1_000,
}  # fmt: skip


def genesis() -> genesis_file.Genesis:
    people = (STEWARD, CREATOR, PAYER, NEWCOMER, *GIVERS)
    return genesis_file.devnet_genesis(
        name="vectors",
        time_ms=START_MS,
        accounts={who.key: 100_000 * OPEN for who in people}
        | {who.key: 1_000 * OPEN for who in VALIDATORS},
        validators={who.key: (20 + i) * OPEN for i, who in enumerate(VALIDATORS)},
        split="whitepaper",
    )


class Story:
    """The blocks, one after another; `done` of each transaction is part of the vector."""

    def __init__(self) -> None:
        self.chain = TinyChain(genesis())
        self.transactions: list[bytes] = []
        self.bundle_seq = 0
        self.register()
        self.gather()
        self.publish()
        self.sell()
        self.agree()
        self.join()
        self.rotate()
        self.leave()
        self.accuse()
        self.withdraw()
        self.retire()
        self.wait()

    def block(self, *said: tuple[Party, Any], later_ms: int = 1_000, **given: Any) -> Outcome:
        """A block of these payloads; senders' nonces follow each other."""
        before: dict[bytes, int] = {}
        raws = []
        for who, payload in said:
            raws.append(self.chain.tx(who, payload, before.get(who.key, 0)))
            before[who.key] = before.get(who.key, 0) + 1
        self.transactions += raws
        return self.chain.block(*raws, later_ms=later_ms, **given)

    def register(self) -> None:
        self.block()
        self.block(
            (PROVIDER, wire.RegisterProvider(PROVIDER.key, PROVIDER.key)),
            (PROVIDER, wire.Bond(tables.ROLE_PROVIDER, PROVIDER.key, 2 * OPEN)),
            (PROVIDER, wire.RegisterProvider(PROVIDER.key, PROVIDER.key)),  # 24: exists
            (PAYER, wire.Transfer(ANA.key, 5 * OPEN, b"first")),
            (PAYER, wire.Transfer(ANA.key, 10**18, b"")),  # 20: insufficient
            (PAYER, wire.Transfer(bytes(32), 1, b"")),  # 26: no point of the curve
        )

    def gather(self) -> None:
        self.block(
            (STEWARD, wire.CreateDatanet(b"facts", TERMS)),
            (STEWARD, wire.CreateDatanet(b"facts", TERMS)),  # 24
            (STEWARD, wire.CreateDatanet(b"Facts", TERMS)),  # 26
        )
        self.block(*((who, contribution(who)) for who in GIVERS), (GIVERS[0], contribution(PAYER)))
        self.block(
            (STEWARD, wire.Curate(1, 1, bytes(32))),
            (STEWARD, wire.Curate(2, 1, bytes(32))),
            (STEWARD, wire.Curate(3, 1, sha256(b"good"))),
            (STEWARD, wire.Curate(4, 3, sha256(b"sloppy"))),
            (STEWARD, wire.Curate(5, 1, bytes(32))),  # 21
            (GIVERS[0], wire.Curate(1, 1, bytes(32))),  # 22
        )

    def publish(self) -> None:
        self.block(
            (STEWARD, wire.Snapshot(1, sha256(b"snapshot"), 3, 30)),
            (CREATOR, wire.RegisterModel(b"facts-1", sha256(b"base"), 7, 1, 1_000)),
            (STEWARD, wire.RegisterModel(b"facts-2", sha256(b"base"), 7, 1, 0)),
        )
        parts = ((1, 1, 2_500),)
        self.block((CREATOR, release(1)), (CREATOR, wire.FundMaintenance(1, OPEN)))
        self.block((STEWARD, release(2, parts)), (CREATOR, release(2)), later_ms=5_000)

    def sell(self) -> None:
        nonce = self.chain.state().account(PAYER.key).nonce
        opening = wire.OpenChannel(PROVIDER.key, PAYER.key, 10 * OPEN, 0)
        self.block((PAYER, opening), (PAYER, opening), (PAYER, opening._replace(cap=1)))
        lanes = [self.lane(nonce, 0), self.lane(nonce, 1), self.lane(nonce + 1, 0)]
        for credits in (((1, 2_500), (2, 7_500)), ((3, 10_000),), ()):
            answer(lanes[0], 1, credits)
        self.settle(lanes[:1])
        answer(lanes[0], 2, ((1, 6_120), (2, 2_455), (3, 1_425)))
        answer(lanes[1], 1, ())
        answer(lanes[2], 2, ((1, 1), (3, 9_999)))
        self.settle(lanes, from_hold=True)
        self.block(
            (PAYER, wire.CloseChannel(lanes[0].channel)),
            (PROVIDER, wire.CloseChannel(lanes[2].channel)),
            (PAYER, wire.CloseChannel(lanes[2].channel)),  # 23
        )
        answer(lanes[1], 1, ((2, 10_000),))
        self.settle(lanes[1:2])
        self.refute(lanes[1])

    def refute(self, lane: LaneSession) -> None:
        """An answer is credited without a sketch: it is reversed, and the provider slashed."""
        answer(lane, 1, ((1, 4_000), (2, 6_000)), sketch_hash=bytes(32))
        answer(lane, 2, ((3, 10_000),))
        self.settle([lane])
        opened = encode_opening(SharesOpened(b"", b"", b""))
        false, honest = (
            wire.FraudProof(SHARES, encode_opening(open_receipt(self.newest, place)), opened)
            for place in (0, 1)
        )
        unknown = ReceiptSubject(bytes(32), 0, b"", b"", ())
        self.block(
            (CREATOR, honest),  # 28
            (CREATOR, false._replace(kind=4)),  # 26
            (CREATOR, false._replace(subject=encode_opening(unknown))),  # 27
            (CREATOR, false),
            (PAYER, false),  # 24
        )

    def agree(self) -> None:
        nonce = self.chain.state().account(PAYER.key).nonce
        self.block((PAYER, wire.OpenChannel(PROVIDER.key, PAYER.key, OPEN, 0)))
        channel, chain_id = self.lane(nonce, 0).channel, self.chain.chain_id
        both = coop_close(chain_id, channel, 0, PAYER, PROVIDER)
        self.block(
            (PAYER, wire.TopUpChannel(channel, OPEN)),
            (CREATOR, wire.TopUpChannel(channel, OPEN)),  # 22
            (CREATOR, coop_close(chain_id, channel, 1, PAYER, PROVIDER)),  # 28: not what is paid
            (CREATOR, both),
            (CREATOR, both),  # 23
            (PAYER, wire.TopUpChannel(channel, OPEN)),  # 23
        )

    def lane(self, nonce: int, number: int) -> LaneSession:
        channel = channel_id(self.chain.chain_id, PAYER.key, PROVIDER.key, nonce)
        return LaneSession(channel, number, PAYER, PROVIDER, random.Random(0), self.chain.chain_id)

    def settle(self, lanes: list[LaneSession], from_hold: bool = False) -> None:
        self.bundle_seq += 1
        bundle = build_bundle(
            chain_id=self.chain.chain_id,
            provider=PROVIDER.key,
            bundle_seq=self.bundle_seq,
            parts=[lane.cut(from_hold) for lane in lanes],
            sign=PROVIDER.sign,
        )
        self.newest = bundle
        self.block(bundles=(bundle,))

    def join(self) -> None:
        own = wire.Bond(tables.ROLE_VALIDATOR, NEWCOMER.key, 50 * OPEN)
        delegated = wire.Bond(tables.ROLE_VALIDATOR, VALIDATORS[1].key, 3 * OPEN)
        self.block((NEWCOMER, own), (PAYER, delegated), later_ms=5_000)
        self.block(later_ms=MINUTE_MS)  # payouts mature; the set of the next period is chosen
        for _ in range(3):
            self.block()
        collected = wire.Bond(tables.ROLE_VALIDATOR, VALIDATORS[1].key, 0)
        self.block((PAYER, collected), (CREATOR, release(1)))

    def withdraw(self) -> None:
        self.block(
            (GIVERS[2], wire.WithdrawContribution(3)),
            (GIVERS[2], wire.WithdrawContribution(3)),  # 23
            (GIVERS[2], wire.WithdrawContribution(1)),  # 22
            (GIVERS[2], wire.WithdrawContribution(9)),  # 21
            (STEWARD, wire.Snapshot(1, sha256(b"fewer"), 2, 20)),
        )

    def retire(self) -> None:
        """Model 1 ends and model 2, which names it, has its fund; then model 2 ends too."""
        dearer = wire.SetPrice(1, 1, *PRICES[:2], 2_000_000)
        self.block(
            (CREATOR, dearer),
            (CREATOR, dearer),  # 27: once a day
            (STEWARD, dearer),  # 22
            (CREATOR, dearer._replace(p_call=1)),  # 26
            (CREATOR, wire.RetireModel(1, 2)),
            (CREATOR, wire.RetireModel(1, 0)),  # 23
            later_ms=4 * MINUTE_MS,
        )
        self.block((STEWARD, wire.RetireModel(2, 1)), later_ms=MINUTE_MS)

    def leave(self) -> None:
        """A part, then all, and what cannot be taken; paid at the end of the story."""
        target = VALIDATORS[1].key
        self.block(
            (PAYER, wire.Unbond(tables.ROLE_VALIDATOR, target, OPEN)),
            (PAYER, wire.Unbond(tables.ROLE_VALIDATOR, target, 2 * OPEN - 1)),  # 25: one is left
            (PAYER, wire.Unbond(tables.ROLE_VALIDATOR, target, 2 * OPEN + 1)),  # 20
            (PAYER, wire.Unbond(tables.ROLE_VALIDATOR, target, 2 * OPEN)),
            (PAYER, wire.Unbond(tables.ROLE_VALIDATOR, target, 1)),  # 21
            (PROVIDER, wire.UpdateProvider(PROVIDER.key, STEWARD.key, tables.PROVIDER_PAUSED)),
            (PROVIDER, wire.UpdateProvider(PROVIDER.key, STEWARD.key, 3)),  # 26
        )

    def accuse(self) -> None:
        """The provider has signed two receipts for one request; a part of its bond is leaving."""
        (channel, _), *_ = (
            (key, record)
            for (key,), record in self.chain.state().scan(tables.CHANNEL)
            if record.paid
        )
        told = {**ANSWER, "attribution_root": sha256(b"\x90")}
        pair = accusation(self.chain.chain_id, channel, PROVIDER, **told)
        unknown = accusation(self.chain.chain_id, bytes(32), PROVIDER, **told)
        self.block((PROVIDER, wire.Unbond(tables.ROLE_PROVIDER, PROVIDER.key, OPEN)))
        self.block(
            (CREATOR, pair._replace(signature_a=bytes(64))),  # 28
            (CREATOR, wire.Evidence(*pair[2:], *pair[:2])),  # 26
            (CREATOR, unknown),  # 27
            (CREATOR, pair),
            (PAYER, pair),  # 24
            (PAYER, wire.OpenChannel(PROVIDER.key, PAYER.key, OPEN, 0)),  # 23: jailed
            (PROVIDER, wire.Unjail(tables.ROLE_PROVIDER)),  # 27
            (PAYER, wire.Unjail(tables.ROLE_PROVIDER)),  # 21
        )

    def rotate(self) -> None:
        taken = rotation(self.chain.chain_id, ANA.key, 0, ANAS_NEW)
        payments = tuple((key, 1) for key in sorted((ANA.key, PAYER.key)))
        self.block(
            (ANA, taken),
            (PROVIDER, rotation(self.chain.chain_id, PROVIDER.key, 3, NEWCOMER)),  # 23: in the set
            (GIVERS[0], wire.MultiTransfer(payments)),
            (GIVERS[1], wire.MultiTransfer(())),  # 26
        )
        spent = self.chain.tx(ANA, wire.Transfer(PAYER.key, OPEN, b""), signer=ANAS_NEW)
        self.transactions.append(spent)
        assert self.chain.block(spent).codes == (0,)

    def wait(self) -> None:
        self.block(later_ms=MINUTE_MS)  # the closing channel ends
        self.block(later_ms=5 * MINUTE_MS)  # closed channels are forgotten, held stakes released
        self.block((GIVERS[2], wire.Transfer(GIVERS[1].key, 1, bytes(64))), later_ms=4 * MINUTE_MS)
        self.block(later_ms=10 * MINUTE_MS)  # the superseded version's deposit returns
        self.block(later_ms=21 * DAY_MS)  # what was unbonded is paid
        free = (PROVIDER, wire.Unjail(tables.ROLE_PROVIDER))
        more = (PROVIDER, wire.Bond(tables.ROLE_PROVIDER, PROVIDER.key, OPEN))
        self.block(free, more, free, free)  # 23: its bond is too small; then 0; then 23

    def told(self) -> dict[str, Any]:
        """The vector: what every node must agree on, by height."""
        chain = self.chain
        return {
            "genesis": genesis_file.encode_genesis(chain.genesis).hex(),
            "chain_id": chain.chain_id.hex(),
            "blocks": [
                {
                    "height": header.height,
                    "time_ms": header.time_ms,
                    "block_id": header.block_id().hex(),
                    "state_root": header.state_root.hex(),
                    "txs_root": header.txs_root.hex(),
                    "bundles_root": header.bundles_root.hex(),
                    "payouts_root": header.payouts_root.hex(),
                    "validators_hash": header.next_validators_hash.hex(),
                    "codes": list(outcome.codes),
                    "payouts": [leaf.hex() for leaf in outcome.payout_leaves],
                    "supply": header.supply,
                }
                for header, outcome in zip(chain.headers, chain.outcomes, strict=True)
            ],
        }


def contribution(who: Party) -> wire.Contribute:
    return wire.Contribute(1, 0, sha256(who.key), sha256(who.seed), 10, 900, 1, 0, b"")


def release(model: int, parts: tuple[tuple[int, int, int], ...] = ()) -> wire.PublishVersion:
    return wire.PublishVersion(
        model, sha256(b"adapter"), 1, sha256(b"index"), sha256(b"manifest"), b"", *PRICES, parts
    )


def answer(
    lane: LaneSession, model: int, credits: tuple[tuple[int, int], ...], **fields: Any
) -> None:
    """A receipt whose every field is given, so that no kit's chance is in the vector."""
    lane.serve(credits, **{**ANSWER, "model": model, **fields})
