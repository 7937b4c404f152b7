"""Programs of chance over all types: exact supply, equal replays, the same roots anywhere."""

import os
import random
import subprocess
import sys

from bundle_kit import Party, party
from chain_kit import (
    CONTRIBUTORS,
    CREATOR,
    FAUCET,
    PAYER,
    PRICES,
    PROVIDER,
    STEWARD,
    TERMS,
    VALIDATORS,
    TinyChain,
    accusation,
    coop_close,
    golden_answer,
    rotation,
)
from evidence_kit import raw_attack, raw_double_vote

from consensus.attacks import Decided
from node.ledger import tables, tree
from node.ledger.execute import RULES_1
from node.ledger.proposing import choose_payload
from node.ledger.rules.models import has_ended
from node.ledger.rules.staking import is_jailed
from node.ledger.wire import openings
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import Bundle

ACCUSED_FROM = 90
UNBONDING_MS = 21 * 86_400_000
PEOPLE = (FAUCET, STEWARD, CREATOR, PAYER, PROVIDER, *CONTRIBUTORS)


class Program:
    """A chain, who signs for each account now, and the channel that answers are paid from."""

    def __init__(self, seed: int) -> None:
        self.chance, self.chain = random.Random(seed), TinyChain()
        self.chain.tell_story(TERMS._replace(withdrawal=seed % 2))
        self.session = self.chain.open_channel()
        self.signers = {who.key: who for who in PEOPLE}
        self.keys: dict[bytes, Party] = {}  # that were made
        self.newest: Bundle | None = None

    def said(self, who: Party, later_ms: int) -> bytes:
        """A transaction of chance."""
        until_ms = self.chain.time_ms + later_ms + 1
        payload, signer = self.payload(who), self.signers[who.key]
        return self.chain.tx(who, payload, signer=signer, valid_until_ms=until_ms)

    def payload(self, who: Party) -> wire.Payload:
        """Of any type, and often of what there is."""
        chance = self.chance
        number, other = chance.randrange(1, 4), chance.choice(PEOPLE).key
        some = chance.randbytes(32)
        amount = chance.choice((0, 1, chance.randrange(10**10), 10**17))
        prices = (chance.randrange(10**10), chance.randrange(10**10), 10**6)
        dearer = (chance.randrange(PRICES[0], 10**12), chance.randrange(PRICES[1], 10**12), 10**7)
        role, channel = chance.randrange(3), self.channel(who)
        kinds = (
            lambda: wire.Transfer(other, amount, b""),
            lambda: wire.MultiTransfer(self.payments(amount)),
            lambda: self.rotation(who),
            lambda: wire.OpenChannel(chance.choice((other, PROVIDER.key)), other, amount, 0),
            lambda: wire.TopUpChannel(channel, amount),
            lambda: wire.CloseChannel(channel),
            lambda: self.agreed(channel),
            lambda: wire.RegisterProvider(some, other),
            lambda: wire.UpdateProvider(other, other, chance.randrange(1, 4)),
            lambda: wire.Bond(role, chance.choice((other, who.key)), amount),
            lambda: wire.Unbond(role, chance.choice((other, who.key)), amount % 10**8),
            lambda: wire.Unjail(role),
            lambda: wire.CreateDatanet(chance.choice((b"facts", b"more", b"x")), TERMS),
            lambda: wire.Contribute(number, 0, some, some, chance.randrange(20), 9, 1, 0, b""),
            lambda: wire.Curate(self.pending(), chance.randrange(6), some),
            lambda: wire.WithdrawContribution(self.contribution(who)),
            lambda: self.snapshot(some),
            lambda: wire.RegisterModel(chance.choice((b"facts-1", b"m-2")), some, 7, number, 1_000),
            lambda: wire.PublishVersion(number, some, 1, some, some, b"", *prices, ()),
            lambda: wire.SetPrice(chance.randrange(1, 3), 1, *dearer),
            lambda: wire.RetireModel(number, chance.randrange(3)),
            lambda: wire.FundMaintenance(number, amount),
            lambda: self.accusation(),
            lambda: self.fraud_proof(),
        )
        if who is STEWARD and chance.random() < 0.4:  # the only one who may
            vote = wire.Curate(self.pending(), chance.randrange(1, 5), some)
            return chance.choice((vote, self.snapshot(some)))
        if who is CREATOR and chance.random() < 0.3:
            return self.fraud_proof()
        if who is PROVIDER and is_jailed(self.chain.state(), tables.ROLE_PROVIDER, who.key):
            return wire.Unjail(tables.ROLE_PROVIDER)
        return chance.choice(kinds)()

    def payments(self, amount: int) -> tuple[tuple[bytes, int], ...]:
        payees = self.chance.sample(PEOPLE, self.chance.randrange(4))
        return tuple(sorted((payee.key, amount) for payee in payees))

    def rotation(self, who: Party) -> wire.RotateKey:
        nonce = self.chain.state().account(who.key).nonce
        new = party(f"{self.chance.randrange(10**9)}")
        self.keys[new.key] = new
        return rotation(self.chain.chain_id, who.key, nonce, new)

    def contributions(self) -> list[tuple[int, tables.Contribution]]:
        found = self.chain.state().scan(tables.CONTRIBUTION)
        return [(int.from_bytes(number, "big"), record) for (number,), record in found]

    def contribution(self, who: Party) -> int:
        own = [n for n, record in self.contributions() if record.contributor == who.key]
        return self.chance.choice((self.chance.randrange(6), *own))

    def pending(self) -> int:
        waiting = [n for n, record in self.contributions() if record.status == tables.PENDING]
        return self.chance.choice((self.chance.randrange(6), *waiting))

    def snapshot(self, root: bytes) -> wire.Snapshot:
        datanet = self.chain.state().get(tables.DATANET, 1)
        accepted = [
            n
            for n, record in self.contributions()
            if (record.datanet, record.status) == (1, tables.ACCEPTED)
        ]
        records = datanet.accepted - datanet.withdrawn + self.chance.randrange(2)
        return wire.Snapshot(self.chance.randrange(1, 3), root, max([0, *accepted]), records)

    def channel(self, who: Party) -> bytes:
        """Any but the one that is paid from, often an own one."""
        others = [
            (key, record.payer)
            for (key,), record in self.chain.state().scan(tables.CHANNEL)
            if key != self.session.channel
        ]
        own = [key for key, payer in others if payer == who.key]
        some = [self.chance.randbytes(32), *(key for key, _ in others)]
        return self.chance.choice(own if own and self.chance.random() < 0.6 else some)

    def agreed(self, channel: bytes) -> wire.CoopClose:
        record = self.chain.state().find(tables.CHANNEL, channel)
        payer, provider, paid = PAYER, PROVIDER, self.chance.randrange(2)
        if record is not None:
            payer, provider = self.signers[record.payer], self.signers[record.provider]
            paid += record.paid
        return coop_close(self.chain.chain_id, channel, paid, payer, provider)

    def accusation(self) -> wire.Evidence:
        """Of a channel that there is only late: a jailed provider settles nothing any more."""
        is_late = self.chain.height >= ACCUSED_FROM
        channel = self.session.channel if is_late else self.chance.randbytes(32)
        signer = self.signers[PROVIDER.key]
        return accusation(self.chain.chain_id, channel, signer, seq=self.chance.randrange(1, 3))

    def fraud_proof(self) -> wire.FraudProof:
        """Of an answer of the newest bundle, which may be honest."""
        empty = openings.encode_opening(openings.SharesOpened(b"", b"", b""))
        if self.newest is None or self.chance.random() < 0.1:
            return wire.FraudProof(self.chance.randrange(8), b"", empty)
        subject = openings.encode_opening(openings.open_receipt(self.newest, 0))
        return wire.FraudProof(openings.SHARES, subject, empty)

    def note(self, raws: list[bytes], codes: tuple[int, ...]) -> None:
        """Who signs from now on."""
        for raw, code in zip(raws, codes, strict=True):
            tx = wire.decode_transaction(raw)
            if code == 0 and isinstance(tx.payload, wire.RotateKey):
                self.signers[tx.sender] = self.keys[tx.payload.key]

    def bundle(self, number: int, later_ms: int) -> tuple[Bundle, ...]:
        """Now and then an answer, while its version is sold."""
        chance, state = self.chance, self.chain.state()
        is_sold = state.get(tables.VERSION, 1, 1).status == tables.VERSION_CURRENT
        is_sold &= not has_ended(state, (1, 1), self.chain.time_ms + later_ms)
        is_sold &= not is_jailed(state, tables.ROLE_PROVIDER, PROVIDER.key)
        if not is_sold or chance.random() >= 0.4:
            return ()
        share = chance.randrange(1, 10_000)
        credits = chance.choice(((), ((1, share), (3, 10_000 - share))))
        is_false = bool(credits) and chance.random() < 0.2
        golden_answer(self.session, credits, **({"sketch_hash": bytes(32)} if is_false else {}))
        self.newest = self.chain.bundle(self.session, number, chance.random() < 0.3)
        return (self.newest,)

    def evidence(self, later_ms: int) -> tuple[bytes, ...]:
        """Of members and others at some height; what a proposer's rehearsal leaves of it."""
        chain, past = self.chain, self.chance.choice(self.chain.past)
        offered = [
            raw_double_vote(
                self.chance.choice(VALIDATORS), past.validators, chain.chain_id, past.height
            )
            for _ in range(2)
        ]
        if past.decided is not None:
            offered.append(self.attack(past.decided))
        context = chain.context(later_ms)
        return choose_payload(RULES_1, chain.state(), context, [], [], offered).payload.evidence

    def attack(self, own: Decided) -> bytes:
        """A block beside the chain's own, by some of its set, from any common block."""
        chance, by_key = self.chance, {who.key: who for who in (*VALIDATORS, *PEOPLE)}
        names = sorted(own.validators.powers())
        count = chance.randrange(1, len(names) + 1)
        signers = [by_key[name] for name in chance.sample(names, count)]
        field = chance.choice(("state_root", "parent_id"))
        common, round = chance.randrange(own.header.height), chance.choice((0, 0, 0, 1))
        fields = {"round": round, field: bytes(32)}
        return raw_attack(common, own.header, own.validators, signers, **fields)

    def block(self, number: int) -> tuple[list[bytes], tuple[int, ...], int]:
        """(transactions, their codes, pieces of evidence) of a block of chance."""
        chance = self.chance
        later_ms = UNBONDING_MS if chance.random() < 0.02 else chance.choice((1_000, 30_000))
        senders = chance.sample(PEOPLE, 4)
        raws = [self.said(who, later_ms) for who in senders]
        accused = self.evidence(later_ms) if chance.random() < 0.1 else ()
        outcome = self.chain.block(
            *raws, bundles=self.bundle(number, later_ms), later_ms=later_ms, evidence=accused
        )
        self.note(raws, outcome.codes)
        return raws, outcome.codes, len(accused)


def run_program(seed: int, blocks: int) -> tuple[list[bytes], set[str], set[int], int]:
    """Roots of blocks of chance, types that did what they say, codes, pieces of evidence.

    Every block keeps the supply exactly (asserted at its end).
    """
    program = Program(seed)
    done: set[str] = set()
    seen: set[int] = set()
    roots, punished = [], 0
    for number in range(1, blocks + 1):
        before = program.chain.state().supply()
        raws, codes, accused = program.block(number)
        header = program.chain.headers[-1]
        assert header.supply <= before
        done |= {
            wire.decode_transaction(raw).type_name
            for raw, code in zip(raws, codes, strict=True)
            if code == 0
        }
        seen |= set(codes)
        punished += accused
        roots += [header.state_root, header.next_validators_hash]
    return roots, done, seen, punished


def test_random_programs_keep_the_supply_and_replay_equal() -> None:
    done, seen, punished = set(), set(), 0
    for seed in (12, 15, 20):
        program = run_program(seed, 120)
        assert program[0] == run_program(seed, 120)[0]
        done, seen, punished = done | program[1], seen | program[2], punished + program[3]
    assert done == {row.make.__name__ for row in wire.TYPES}, "each type did what it says"
    assert seen >= {0, 20, 21, 22, 23, 24, 26, 27, 28}
    assert punished > 1


def test_roots_do_not_depend_on_the_hash_seed() -> None:
    """Sets and dicts of bytes are ordered by a salt that differs between processes."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/unit/ledger']; import test_programs as t; "
        "print(b''.join(t.run_program(11, 40)[0]).hex())"
    )
    printed = []
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert len(printed[0]) > 1_000


def test_the_tree_of_a_long_program_equals_a_rebuild() -> None:
    program = Program(3)
    for number in range(1, 21):
        program.block(number)
    rebuilt = tree.update(lambda _: None, b"", 0, sorted(program.chain.flat.items()))
    assert rebuilt.root == program.chain.headers[-1].state_root
