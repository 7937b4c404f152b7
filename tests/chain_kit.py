"""A whole chain in memory: genesis, executed blocks, certificates by its own validators."""

import random
from typing import Any

from bundle_kit import LaneSession, Party, party, some_receipt

from consensus.attacks import Decided
from consensus.certificate import (
    PRECOMMIT,
    decode_certificate,
    encode_certificate,
    make_certificate,
    vote_body,
)
from consensus.header import Header
from consensus.primitives import merkle
from consensus.primitives.digest import sha256, signing_bytes
from node.ledger import genesis as genesis_file
from node.ledger import tables
from node.ledger.context import Context, PastHeight
from node.ledger.execute import Outcome, execute_block, make_header, rules_for
from node.ledger.state import Base, State
from node.ledger.wire import transactions as wire
from node.ledger.wire.blocks import Payload
from node.ledger.wire.bundles import Bundle, build_bundle
from node.ledger.wire.orders import channel_id
from node.ledger.wire.receipts import COMPLETE, PARTIAL, encode_receipt, receipt_message

OPEN = 10**9
START_MS = 1_700_000_000_000
VALIDATORS = tuple(party(f"validator {i}") for i in range(4))
FAUCET, STEWARD, CREATOR, PAYER = (
    party(name) for name in ("faucet", "steward", "creator", "payer")
)
PROVIDER = VALIDATORS[0]
CONTRIBUTORS = tuple(party(f"giver {i}") for i in range(3))
BASE_HASH = b"\7" * 32
TERMS = tables.Terms(bytes(32), (1, 7), 0, 1, 10**5, 500, 600_000, 0)
PRICES = (21_200_000_000, 63_600_000_000, 1_000_000)


def devnet(split: str = "default", **accounts: int) -> genesis_file.Genesis:
    people = (FAUCET, STEWARD, CREATOR, PAYER, *CONTRIBUTORS)
    return genesis_file.devnet_genesis(
        name="kit",
        time_ms=START_MS,
        accounts={who.key: 1_000_000 * OPEN for who in people}
        | {who.key: 1_000 * OPEN for who in VALIDATORS},
        validators={who.key: 20 * OPEN for who in VALIDATORS},
        split=split,
    )


class TinyChain:
    """Blocks are made by whose turn it is, and signed by three of four."""

    def __init__(self, genesis: genesis_file.Genesis | None = None) -> None:
        self.genesis = genesis or devnet()
        self.chain_id = self.genesis.chain_id
        self.rules = rules_for(self.genesis.app_version)
        begun = genesis_file.start(self.genesis)
        self.flat = {key: value for key, value in begun.changes if value is not None}
        self.nodes = dict(begun.tree.nodes)
        self.records = [begun.tree.record]
        self.validators = begun.validators
        self.time_ms, self.height = START_MS, 0
        self.block_id = self.chain_id
        self.headers: list[Header] = []
        self.outcomes: list[Outcome] = []
        self.certificates: list[bytes] = [b""]
        self.history = merkle.Frontier()
        self.past: list[PastHeight] = []  # all decided heights

    @property
    def base(self) -> Base:
        flat = dict(self.flat)  # of this moment

        def scan(start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
            return sorted((k, v) for k, v in flat.items() if start <= k < stop)

        return Base(flat.get, scan, self.nodes.get, self.records[-1])

    def state(self) -> State:
        return State(self.base)

    def context(self, later_ms: int = 1_000) -> Context:
        turn = self.validators.turn
        return Context(
            self.chain_id,
            self.height + 1,
            self.time_ms + later_ms,
            turn,
            (turn,),
            self.block_id,
            tuple(self.past),
        )

    def tx(
        self, who: Party, payload: Any, ahead: int = 0, signer: Party | None = None, **fields: Any
    ) -> bytes:
        """Wire bytes signed by the sender, or by `signer`; `ahead`: how many of the sender's stand
        before it in the block."""
        values = {
            "nonce": self.state().account(who.key).nonce + ahead,
            "max_fee": OPEN,
            "valid_until_ms": self.time_ms + 3_600_000,
        } | fields
        body = wire.encode_body(who.key, payload=payload, **values)
        return wire.sign_transaction(self.chain_id, (signer or who).seed, body)

    def execute(
        self,
        *transactions: bytes,
        bundles: tuple[Bundle, ...] = (),
        later_ms: int = 1_000,
        evidence: tuple[bytes, ...] = (),
    ) -> Outcome:
        """What a block would do; nothing is kept."""
        ordered = tuple(bundle.hash for bundle in bundles)
        payload = Payload(transactions, ordered, evidence)
        bodies = {bundle.hash: bundle for bundle in bundles}
        return execute_block(self.rules, self.state(), self.context(later_ms), payload, bodies)

    def block(
        self,
        *transactions: bytes,
        bundles: tuple[Bundle, ...] = (),
        later_ms: int = 1_000,
        evidence: tuple[bytes, ...] = (),
    ) -> Outcome:
        """Execute and keep a block."""
        context = self.context(later_ms)
        outcome = self.execute(*transactions, bundles=bundles, later_ms=later_ms, evidence=evidence)
        header = make_header(
            context,
            outcome,
            validators_hash=self.validators.hash(),
            last_commit_hash=sha256(self.certificates[-1]) if self.headers else bytes(32),
            history_root=self.history.root(),
        )
        for key, value in outcome.changes:
            if value is None:
                del self.flat[key]
            else:
                self.flat[key] = value
        self.nodes.update(outcome.tree.nodes)  # stale ones stay: proofs at any height
        self.records.append(outcome.tree.record)
        self.time_ms, self.height = context.time_ms, context.height
        self.block_id = header.block_id()
        self.history.append(self.block_id)
        self.headers.append(header)
        self.outcomes.append(outcome)
        self.certificates.append(self.certify(self.height, self.block_id))
        self._note_past(header)
        self.validators = outcome.next_validators
        return outcome

    def _note_past(self, header: Header) -> None:
        """The block is decided, and the commit of the one before it stands in the chain."""
        if self.past:
            before = self.past[-1]
            commit = decode_certificate(self.certificates[-2])
            own = Decided(self.headers[-2], commit, before.validators)
            self.past[-1] = before._replace(decided=own)
        self.past.append(PastHeight(self.height, self.time_ms, self.validators))

    def certify(self, height: int, block_id: bytes, signers: int = 3, round: int = 0) -> bytes:
        body = vote_body(PRECOMMIT, height, round, block_id)
        message = signing_bytes(b"vote", self.chain_id, body)
        people = (*VALIDATORS, FAUCET, STEWARD, CREATOR, PAYER, *CONTRIBUTORS)
        seeds = {who.key: who for who in people}
        members = self.validators.members[:signers]
        signed = {i: seeds[member.key].sign(message) for i, member in enumerate(members)}
        made = make_certificate(PRECOMMIT, height, round, block_id, signed, len(self.validators))
        return encode_certificate(made)

    # ---- the story of a Datanet, a model, a paid answer

    def tell_story(self, terms: tables.Terms = TERMS, index_root: bytes = b"\3" * 32) -> None:
        """Provider, Datanet with three contributions, model 1 with version 1."""
        register = wire.RegisterProvider(PROVIDER.key, PROVIDER.key)
        bond = wire.Bond(tables.ROLE_PROVIDER, PROVIDER.key, 2 * OPEN)
        self.block(self.tx(PROVIDER, register), self.tx(PROVIDER, bond, 1))
        self.block(self.tx(STEWARD, wire.CreateDatanet(b"facts", terms)))
        given = [
            self.tx(who, wire.Contribute(1, 0, sha256(who.key), sha256(who.seed), 10, 9, 1, 0, b""))
            for who in CONTRIBUTORS
        ]
        self.block(*given)
        self.block(
            *(self.tx(STEWARD, wire.Curate(i + 1, 1, bytes(32)), i) for i in range(len(given)))
        )
        self.block(
            self.tx(STEWARD, wire.Snapshot(1, b"\1" * 32, 3, 30)),
            self.tx(CREATOR, wire.RegisterModel(b"facts-1", BASE_HASH, 7, 1, 1_000)),
        )
        release = wire.PublishVersion(1, b"\2" * 32, 1, index_root, b"\4" * 32, b"", *PRICES, ())
        self.block(self.tx(CREATOR, release))
        assert all(code == 0 for outcome in self.outcomes for code in outcome.codes)

    def open_channel(self, cap: int = 10 * OPEN) -> LaneSession:
        nonce = self.state().account(PAYER.key).nonce
        outcome = self.block(self.tx(PAYER, wire.OpenChannel(PROVIDER.key, PAYER.key, cap, 0)))
        assert outcome.codes == (0,)
        channel = channel_id(self.chain_id, PAYER.key, PROVIDER.key, nonce)
        return LaneSession(channel, 0, PAYER, PROVIDER, random.Random(1), self.chain_id)

    def bundle(self, session: LaneSession, bundle_seq: int = 1, from_hold: bool = False) -> Bundle:
        return build_bundle(
            chain_id=self.chain_id,
            provider=PROVIDER.key,
            bundle_seq=bundle_seq,
            parts=[session.cut(from_hold)],
            sign=PROVIDER.sign,
        )


def rotation(chain_id: bytes, account: bytes, nonce: int, key: Party) -> wire.RotateKey:
    """What takes `account` over to `key` in its transaction of `nonce`."""
    message = signing_bytes(wire.ROTATE_TAG, chain_id, wire.rotation_body(account, nonce))
    return wire.RotateKey(key.key, key.sign(message))


def coop_close(
    chain_id: bytes, channel: bytes, paid: int, payer: Party, provider: Party
) -> wire.CoopClose:
    """Signed by both for what is paid."""
    message = signing_bytes(wire.COOP_TAG, chain_id, wire.coop_body(channel, paid))
    return wire.CoopClose(channel, payer.sign(message), provider.sign(message))


def accusation(
    chain_id: bytes, channel: bytes, provider: Party, lane: int = 0, seq: int = 1, **fields: Any
) -> wire.Evidence:
    """Of a provider that signed a partial answer and a whole one for one request; `fields`: of
    both receipts."""
    place = {"channel": channel, "lane": lane, "seq": seq} | fields
    signed = []
    for status in (PARTIAL, COMPLETE):
        raw = encode_receipt(some_receipt(random.Random(2), b"", **place, status=status))
        signed.append((raw, provider.sign(receipt_message(chain_id, raw))))
    return wire.make_evidence(*signed)


def golden_answer(
    session: LaneSession, credits: tuple[tuple[int, int], ...], **fields: object
) -> bytes:
    """812 tokens in, 143 out at the reference price of rank 16: 27,309,200 grains."""
    made = {"model": 1, "model_version": 1, "tokens_in": 812, "tokens_out": 143, "fee": 27_309_200}
    return session.serve(credits, **(made | fields))
