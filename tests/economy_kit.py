"""A chain with two providers, data and a composite model, beside a plain model of its economy.

`Market` plays blocks of what it is told to do: answers in lanes, bundles of them, transactions; it
foretells each block by `economy_model.Economy` and compares all that the ledger then holds. What is
done is drawn by chance, from a seed or from Hypothesis.
"""

import random
from collections.abc import Callable
from typing import Any, Final

from bundle_kit import LaneSession, Party
from chain_kit import (
    BASE_HASH,
    CONTRIBUTORS,
    CREATOR,
    FAUCET,
    OPEN,
    PAYER,
    PRICES,
    STEWARD,
    TERMS,
    VALIDATORS,
    TinyChain,
    coop_close,
    devnet,
)
from economy_holdings import (
    ACCEPTED,
    CLOSED,
    Answer,
    Escrow,
    Gift,
    Parcel,
    Pot,
    Release,
    Root,
    Server,
    Stretch,
)
from economy_model import Economy
from evidence_kit import raw_double_vote

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.context import PastHeight
from node.ledger.rules.refuting import NO_CLAIM
from node.ledger.state import State
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import BodyPart, Bundle, build_bundle, decode_header
from node.ledger.wire.openings import SharesOpened, encode_opening, open_receipt
from node.ledger.wire.payouts import TOTAL, decode_payout

SEED: Final = 40
BLOCKS: Final = 150
PER_BLOCK: Final = 76
SPLIT: Final = (2_000, 3_700, 1_500, 1_000, 1_000, 500, 300)  # with something to burn
CHARTER: Final = TERMS._replace(stake_per_record=100_001)  # odd: halves of it are not equal
PROVIDERS: Final = VALIDATORS[:2]
PEOPLE: Final = (FAUCET, STEWARD, CREATOR, PAYER, *CONTRIBUTORS, *PROVIDERS)
EVERYBODY: Final = (FAUCET, STEWARD, CREATOR, PAYER, *CONTRIBUTORS, *VALIDATORS)
STORY_ENDS_MS: Final = 40 * 86_400_000  # the story's stakes have come back
STEPS_MS: Final = (500, 1_000, 2_500, 20_000, 61_000)
LONG_STEP_MS: Final = 22 * 86_400_000  # unbonding is over
MAX_FEE: Final = OPEN // 10
LANES: Final = 2
TOKENS: Final = 2_000  # of an answer: dear enough for any fee here
FEE_MAX: Final = 60_000_000
CHANNEL_MAX: Final = OPEN
ANSWERS_MAX: Final = 60  # for a block
LATELY: Final = 12  # heights back, for offences
REMEMBERED: Final = 20  # bundles, to be sent again
FALSE: Final = 0.01  # of the answers that credit anybody

Lane = tuple[bytes, int]


def told_story() -> TinyChain:
    """Providers, a Datanet with three contributions, model 1, and model 2 with a part of it."""
    genesis = devnet()
    changed = dict(genesis.parameters) | {b"split_bps": SPLIT}
    chain = TinyChain(genesis._replace(parameters=tuple(sorted(changed.items()))))
    chain.tell_story(CHARTER)
    second = PROVIDERS[1]
    chain.block(
        chain.tx(second, wire.RegisterProvider(second.key, CONTRIBUTORS[2].key)),
        chain.tx(second, wire.Bond(tables.ROLE_PROVIDER, second.key, 3 * OPEN), 1),
        chain.tx(STEWARD, wire.RegisterModel(b"both", BASE_HASH, 7, 1, 500)),
    )
    chain.block(chain.tx(STEWARD, release_of(2, 1, ((1, 1, 2_345),))))
    chain.block(later_ms=STORY_ENDS_MS)
    assert all(code == 0 for outcome in chain.outcomes for code in outcome.codes)
    return chain


def release_of(
    model: int, snapshot: int, parts: tuple[tuple[int, int, int], ...] = ()
) -> wire.PublishVersion:
    """A version at the usual prices."""
    return wire.PublishVersion(
        model, b"\2" * 32, snapshot, b"\3" * 32, b"\4" * 32, b"", *PRICES, parts
    )


def economy_of(chain: TinyChain) -> Economy:
    """The model where the story ends: nothing of it is due any more."""
    state = chain.state()
    given = {name.decode(): values for name, values in chain.genesis.parameters}
    made = Economy(chain.chain_id, given)
    for who in EVERYBODY:
        account = state.account(who.key)
        made.balance[who.key], made.nonce[who.key] = account.balance, account.nonce
    for (key,), server in state.scan(tables.PROVIDER):
        made.servers[key] = Server(server.reward_account, server.deposit)
    for (role, target, owner), bond in state.scan(tables.BOND):
        made.bonds[role[0], target, owner] = (bond.amount, bond.entry)
    for (role, target), stake in state.scan(tables.STAKE):
        made.pots[role[0], target] = Pot(stake.bonded, stake.per_grain, stake.undistributed)
    made.validators = made.standing = tuple(sorted(who.key for who in VALIDATORS))
    for (number,), record in state.scan(tables.CONTRIBUTION):
        gift = Gift(
            record.contributor, record.content_hash, record.records, record.stake, record.made_ms,
            record.status, record.accepted_ms,
        )  # fmt: skip
        made.gifts[int.from_bytes(number, "big")] = gift
    datanet = state.get(tables.DATANET, 1)
    made.steward, made.terms, made.datanet_pool = STEWARD.key, CHARTER, datanet.pool
    made.accepted = datanet.accepted
    first = state.get(tables.SNAPSHOT, 1)
    made.snapshots = {1: Root(first.last_contribution, first.records, first.made_ms)}
    for number, creator in ((1, CREATOR.key), (2, STEWARD.key)):
        version = state.get(tables.VERSION, number, 1)
        made.releases[number, 1] = Release(creator, 1, version.parts, version.deposit)
        made.current[number] = 1
        made.royalty[number] = state.get(tables.MODEL, number).royalty_bps
        made.funds[number] = state.get(tables.FUND, number).balance
    made.treasury = state.get(tables.POOL, tables.TREASURY).balance
    made.supply = state.supply()
    counted = made.totals()
    made.fixed.update({
        name: held - counted.get(name, 0) for name, held in state.totals()._asdict().items()
    })  # fmt: skip
    return made


class Market:
    """The chain, the model, and what waits for the next block."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.chain = told_story()
        self.model = economy_of(self.chain)
        self.waiting: list[tuple[Party, wire.Payload]] = []
        self.accused: list[tuple[Party, PastHeight]] = []  # who voted twice, at which height
        self.sessions: dict[Lane, LaneSession] = {}
        self.unsettled: dict[Lane, list[Answer]] = {}
        self.dead: set[Lane] = set()  # lanes whose receipts can never be settled
        self.bundles: list[tuple[Bundle, list[BodyPart], Party]] = []
        self.codes: dict[int, int] = {}  # how often each was given
        self.done: dict[str, int] = {}  # types that did what they say, kinds that matured
        self.count = self.receipts = self.refused = 0
        self.later_ms = STEPS_MS[0]  # of the block that is made

    # ---- answers

    def answer(self) -> None:
        """One more receipt in a lane of a channel that is open."""
        chance, model = self.chance, self.model
        alive = [name for name, x in model.channels.items() if x.state != CLOSED]
        if not alive:
            return
        lane = (chance.choice(alive[-12:]), chance.randrange(LANES))
        channel = model.channels[lane[0]]
        fee = chance.choice((100_000, 999_999, chance.randrange(100_000, FEE_MAX)))
        if lane in self.dead or (self._owed(lane[0]) + fee > channel.cap and chance.random() < 0.9):
            return
        if lane not in self.sessions:
            seed, who = chance.randrange(2**32), by_key(channel.payer)
            self.sessions[lane] = LaneSession(
                *lane, who, by_key(channel.provider), random.Random(seed), self.chain.chain_id
            )
        which = chance.choice([*model.current.items(), *list(model.releases)[-3:]])
        credits = self._credits(which)
        is_false = bool(credits) and chance.random() < FALSE
        self.sessions[lane].serve(
            credits, model=which[0], model_version=which[1], fee=fee, tokens_in=TOKENS,
            tokens_out=TOKENS, **({"sketch_hash": NO_CLAIM} if is_false else {}),
        )  # fmt: skip
        self.unsettled.setdefault(lane, []).append(Answer(which, fee, credits, is_false))

    def _owed(self, channel: bytes) -> int:
        waiting = (self.unsettled.get((channel, lane), ()) for lane in range(LANES))
        fees = sum(answer.fee for answers in waiting for answer in answers)
        return self.model.channels[channel].paid + fees

    def _credits(self, which: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Of the data behind a version, at times in part; seldom of some other, or to nobody."""
        chance = self.chance
        known = sorted(self.model.creditable(which))
        if chance.random() < 0.03:
            known = sorted(n for n, gift in self.model.gifts.items() if gift.accepted_ms)
        count = min(len(known), chance.choice((0, 1, 2, 3, 3, 5)))
        if not count:
            return ()
        bounds = [0, *sorted(chance.sample(range(1, 10_000), count - 1)), 10_000]
        numbers = sorted(chance.sample(known, count))
        if count > 1 and chance.random() < 0.3:
            numbers[0] = 0  # the fund's share
        return tuple((n, bounds[i + 1] - bounds[i]) for i, n in enumerate(numbers))

    def _cut(self, now_ms: int) -> list[Bundle]:
        """A bundle of each provider over all its lanes that have something, as far as it holds."""
        for lane in list(self.sessions):
            channel = self.model.channels.get(lane[0])
            if channel is None or channel.state == CLOSED:
                self._bury(lane)
        made = []
        for provider in sorted(PROVIDERS, key=lambda who: who.key):
            lanes = [
                lane
                for lane in sorted(self.unsettled)
                if self.unsettled[lane] and self.sessions[lane].provider == provider
            ]
            parts, stretches = [], []
            for lane in lanes:
                stretch, part = self._section(lane)
                parcel = Parcel(provider.key, self._next(provider), (*stretches, stretch))
                if self.model.would_take(parcel, now_ms):
                    parts.append(part)
                    stretches.append(stretch)
                else:
                    self._bury(lane)
                    self.refuse(self._bundle(provider, [*parts, part], parcel.number))
            if parts and self.chance.random() < 0.1:
                self.refuse(self._bundle(provider, parts, self._next(provider) - 1))
            if parts:
                made.append(self._send(provider, parts, stretches))
        return made

    def _section(self, lane: Lane) -> tuple[Stretch, BodyPart]:
        session, answers = self.sessions[lane], tuple(self.unsettled[lane])
        part = session.cut(from_hold=self.chance.random() < 0.3)
        self.unsettled[lane] = []
        return Stretch(*lane, session.seq, answers), part

    def _send(self, provider: Party, parts: list[BodyPart], stretches: list[Stretch]) -> Bundle:
        number = self._next(provider)
        parcel = Parcel(provider.key, number, tuple(stretches))
        self.model.take_parcel(parcel)
        self.receipts += sum(len(stretch.answers) for stretch in stretches)
        bundle = self._bundle(provider, parts, number)
        self.model.keep(bundle.hash, parcel, self.chain.time_ms + self.later_ms)
        self.bundles = [*self.bundles[1 - REMEMBERED :], (bundle, parts, provider)]
        return bundle

    def _next(self, provider: Party) -> int:
        return self.model.servers[provider.key].bundle_seq + 1

    def _bundle(self, provider: Party, parts: list[BodyPart], number: int) -> Bundle:
        return build_bundle(
            chain_id=self.chain.chain_id, provider=provider.key, bundle_seq=number, parts=parts,
            sign=provider.sign,
        )  # fmt: skip

    def _bury(self, lane: Lane) -> None:
        """Nothing more comes of a lane."""
        self.dead.add(lane)
        self.sessions.pop(lane, None)
        self.unsettled.pop(lane, None)

    def refuse(self, bundle: Bundle) -> None:
        """The ledger takes no block with this bundle."""
        try:
            self.chain.execute(bundles=(bundle,), later_ms=self.later_ms)
        except Invalid:
            self.refused += 1
        else:
            raise AssertionError("a bundle is settled that the model refuses")

    def replay(self) -> None:
        """An old bundle once more, and its sections under a new number."""
        if self.bundles:
            bundle, parts, provider = self.chance.choice(self.bundles)
            self.refuse(bundle)
            self.refuse(self._bundle(provider, parts, self._next(provider)))

    # ---- transactions

    def transact(self) -> None:
        """One more, of any kind, often of what there is."""
        chance = self.chance
        kinds, weights = zip(*KINDS, strict=True)
        kind: Callable[[Market, Party], wire.Payload] = chance.choices(kinds, weights)[0]
        who = chance.choice((*PEOPLE, *ACTORS.get(kind, ()) * 8))
        self.waiting.append((who, kind(self, who)))

    def some_amount(self, who: Party) -> int:
        """Nothing, little, much, too much."""
        balance = self.model.balance[who.key]
        return self.chance.choice((0, 1, self.chance.randrange(10**9), balance // 3, balance + 1))

    def some_channel(self, who: Party) -> bytes:
        """Mostly one that is open, often an own one."""
        known = self.model.channels.items()
        alive = [name for name, x in known if x.state != CLOSED]
        own = [name for name in alive if who.key in ends_of(self.model.channels[name])]
        wanted = self.chance.choice((own, own, alive, [name for name, _ in known]))
        return self.chance.choice(wanted) if wanted else self.chance.randbytes(32)

    def some_consent(self, who: Party) -> wire.CoopClose:
        """Both sides' to what is paid now, or to another sum."""
        name = self.some_channel(who)
        channel = self.model.channels.get(name)
        if channel is None:
            return wire.CoopClose(name, bytes(64), bytes(64))
        paid = channel.paid + self.chance.choice((0, 0, 0, 1))
        sides = (by_key(channel.payer), by_key(channel.provider))
        made = coop_close(self.chain.chain_id, name, paid, *sides)
        self.model.consents[made.payer_signature] = paid
        return made

    def some_proof(self, who: Party) -> wire.FraudProof:
        """Of any answer of late, oftener of a false one; seldom of a kind that needs people."""
        if not self.bundles:
            return wire.FraudProof(9, b"", b"")
        named = {bundle.hash: bundle for bundle, _, _ in self.bundles}
        places = [
            (name, place)
            for name, kept in self.model.kept.items()
            for place, (_, answer) in enumerate(kept.answers)
            if answer.is_false and name in named
        ]
        name = self.chance.choice(list(named))
        if places and self.chance.random() < 0.8:
            name, place = self.chance.choice(places)
        else:
            place = self.chance.randrange(decode_header(named[name].header).count)
        subject = encode_opening(open_receipt(named[name], place))
        kind = self.chance.choice((1,) * 9 + (4,))
        return wire.FraudProof(kind, subject, encode_opening(SharesOpened(b"", b"", b"")))

    def some_place(self, who: Party) -> tuple[int, bytes]:
        """Role and target of a bond, mostly one that is."""
        mine = [place[:2] for place in self.model.bonds if place[2] == who.key]
        mine = [place for place in mine if place != (0, who.key)]  # the set stays as it is
        member = self.chance.choice([one for one in VALIDATORS if one != who])
        others = ((0, member.key), (1, who.key), (2, BASE_HASH))
        odd = (self.chance.choice((1, 2, 3)), self.chance.choice(PEOPLE).key)
        return self.chance.choice((*mine, *others, odd))

    def accuse(self) -> None:
        """One or both of two validators voted twice, each once, at some height of late."""
        guilty = {key for _, key, _ in self.model.offences}
        innocent = [who for who in VALIDATORS[2:] if who.key not in guilty]
        if innocent and not self.accused:
            past = self.chance.choice(self.chain.past[-LATELY:])
            count = min(len(innocent), self.chance.choice((1, 2, 2)))
            self.accused = [(who, past) for who in self.chance.sample(innocent, count)]

    def _punish(self, now_ms: int) -> tuple[bytes, ...]:
        """In the model, and by what proves it: pieces of evidence for the block."""
        oldest_ms = now_ms - self.model.value("evidence_age_ms_max")
        proved = [(who, past) for who, past in self.accused if past.time_ms >= oldest_ms]
        self.accused = []
        offences = []
        for who, past in proved:
            power = past.validators.power(who.key) * 10_000 // past.validators.total
            offences.append((past.time_ms, who.key, power))
            self._note("slashed")
        self.model.punish(offences)
        return tuple(
            raw_double_vote(who, past.validators, self.chain.chain_id, past.height)
            for who, past in proved
        )

    # ---- a block

    def block(self, later_ms: int) -> None:
        """What waits, in the ledger and in the model; all must agree."""
        model, chain = self.model, self.chain
        now_ms, proposer = chain.time_ms + later_ms, chain.validators.turn
        for bucket_ms, kind, _ in model.maturing:
            if bucket_ms <= now_ms:
                self._note(f"matured {kind}")
        model.advance(now_ms)
        evidence = self._punish(now_ms)
        self.later_ms = later_ms
        bundles = self._cut(now_ms)
        raws, foretold = [], []
        for who, payload in self.waiting:
            if model.balance[who.key] < MAX_FEE:
                continue  # it could not pay, so nobody would put it into a block
            body = wire.encode_body(
                who.key, nonce=model.nonce[who.key], max_fee=MAX_FEE, valid_until_ms=now_ms + 1,
                payload=payload,
            )  # fmt: skip
            raws.append(wire.sign_transaction(chain.chain_id, who.seed, body))
            foretold.append(model.take(raws[-1], now_ms, proposer))
        self.waiting.clear()
        model.end_block(now_ms)
        outcome = chain.block(
            *raws, bundles=tuple(bundles), later_ms=later_ms, evidence=evidence
        )  # fmt: skip
        assert list(outcome.codes) == foretold
        self.count += len(raws)
        for raw, code in zip(raws, foretold, strict=True):
            self.codes[code] = self.codes.get(code, 0) + 1
            if code == 0:
                self._note(wire.decode_transaction(raw).type_name)
        self._compare_payouts()
        self.compare()

    def _note(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def _compare_payouts(self) -> None:
        leaves = [decode_payout(raw) for raw in self.chain.outcomes[-1].payout_leaves]
        found = [
            (x.kind, payee_of(x.kind, x.payee), x.model, x.version, x.amount)
            for x in leaves
            if x.kind != TOTAL
        ]
        assert sorted(found, key=repr) == sorted(self.model.payouts, key=repr)

    def compare(self) -> None:
        """All that the model knows, as the ledger has it."""
        model, state = self.model, self.chain.state()
        for key, balance in model.balance.items():
            account = state.account(key)
            assert (account.balance, account.nonce) == (balance, model.nonce[key])
        self._compare_channels(state)
        self._compare_stakes(state)
        self._compare_data(state)
        maturing = {
            (int.from_bytes(bucket, "big"), kind[0], payee_of(kind[0], payee)): record.amount
            for (bucket, kind, payee), record in state.scan(tables.MATURING)
        }
        assert maturing == dict(model.maturing)
        totals = state.totals()._asdict()
        assert {name: totals[name] for name in model.totals()} == model.totals()
        assert sum(totals.values()) == state.supply() == model.supply
        assert self.chain.headers[-1].supply == model.supply

    def _compare_channels(self, state: State) -> None:
        records = {key: record for (key,), record in state.scan(tables.CHANNEL)}
        assert records.keys() == self.model.channels.keys()
        lanes: dict[bytes, dict[int, tuple[int, int]]] = {key: {} for key in records}
        for (key, number), lane in state.scan(tables.LANE):
            lanes[key][int.from_bytes(number, "big")] = (lane.seq, lane.cumulative)
        for key, channel in self.model.channels.items():
            record = records[key]
            found = Escrow(
                record.payer, record.provider, record.cap, record.paid, record.state,
                record.opened_ms, lanes[key],
            )  # fmt: skip
            assert found == channel
        for key, server in self.model.servers.items():
            kept = state.get(tables.PROVIDER, key)
            found_server = Server(kept.reward_account, kept.deposit, kept.bundle_seq, kept.status)
            assert found_server == server
            conduct = state.find(tables.CONDUCT, tables.ROLE_PROVIDER, key) or tables.Conduct()
            assert conduct.jailed_until_ms == self.model.jailed.get(key, 0)
            assert conduct.failures == tuple(at for at, _ in self.model.failures.get(key, []))[-32:]

    def _compare_stakes(self, state: State) -> None:
        bonds = {
            (role[0], target, owner): (bond.amount, bond.entry)
            for (role, target, owner), bond in state.scan(tables.BOND)
        }
        assert bonds == self.model.bonds
        pots = {
            (role[0], target): Pot(stake.bonded, stake.per_grain, stake.undistributed)
            for (role, target), stake in state.scan(tables.STAKE)
        }
        assert pots == self.model.pots
        leaving = {
            int.from_bytes(number, "big"): ((x.role, x.target, x.owner), x.amount, x.made_ms)
            for (number,), x in state.scan(tables.UNBONDING)
        }
        assert leaving == self.model.leaving

    def _compare_data(self, state: State) -> None:
        model = self.model
        for (number,), record in state.scan(tables.CONTRIBUTION):
            gift = model.gifts[int.from_bytes(number, "big")]
            found = (record.status, record.stake, record.earned)
            assert found == (gift.status, gift.stake, gift.earned)
        datanet = state.get(tables.DATANET, 1)
        held = (datanet.pool, datanet.accepted, datanet.withdrawn)
        assert held == (model.datanet_pool, model.accepted, model.withdrawn)
        for number, current in model.current.items():
            assert state.get(tables.MODEL, number).current == current
            assert state.get(tables.FUND, number).balance == model.funds[number]
        for (number, which), release in model.releases.items():
            version = state.get(tables.VERSION, number, which)
            found_release = Release(
                release.creator, version.snapshot, version.parts, version.deposit,
                version.superseded_ms,
            )  # fmt: skip
            assert found_release == release
        assert state.get(tables.POOL, tables.TREASURY).balance == model.treasury


def by_key(key: bytes) -> Party:
    """Who signs for an account."""
    return next(who for who in EVERYBODY if who.key == key)


def ends_of(channel: Escrow) -> tuple[bytes, bytes]:
    """Payer and provider."""
    return channel.payer, channel.provider


def payee_of(kind: int, payee: bytes) -> Any:
    """As the model names it: an account, a number, or 0 for a pool."""
    if kind in (tables.KIND_PROVIDER, tables.KIND_CREATOR):
        return payee
    return int.from_bytes(payee, "big")


def _bond(market: Market, who: Party) -> wire.Payload:
    role, target = market.some_place(who)
    return wire.Bond(role, target, market.some_amount(who) % (20 * OPEN))


def _unbond(market: Market, who: Party) -> wire.Payload:
    role, target = market.some_place(who)
    held, _ = market.model.bonds.get((role, target, who.key), (10**8, 0))
    amount = market.chance.choice((0, held // 7, held // 2, held, held + 1, 10**7))
    return wire.Unbond(role, target, amount)


def _update(market: Market, who: Party) -> wire.Payload:
    reward = market.chance.choice(PEOPLE).key
    return wire.UpdateProvider(who.key, reward, market.chance.choice((1, 1, 1, 1, 2, 3)))


def _unjail(market: Market, who: Party) -> wire.Payload:
    return wire.Unjail(market.chance.choice((1, 1, 1, 2)))


def _contribute(market: Market, who: Party) -> wire.Payload:
    content = bytes([market.chance.randrange(200)]) * 32
    records = market.chance.randrange(20)
    return wire.Contribute(1, 0, bytes(32), content, records, 9, 1, 0, b"")


def _curate(market: Market, who: Party) -> wire.Payload:
    waiting = [number for number, gift in market.model.gifts.items() if gift.status == 0]
    number = market.chance.choice((*waiting, market.chance.randrange(9)))
    return wire.Curate(number, market.chance.randrange(6), bytes(32))


def _withdraw(market: Market, who: Party) -> wire.Payload:
    own = [number for number, gift in market.model.gifts.items() if gift.owner == who.key]
    return wire.WithdrawContribution(market.chance.choice((*own, market.chance.randrange(9))))


def _snapshot(market: Market, who: Party) -> wire.Payload:
    """Of the newest contribution that was accepted, seldom of another."""
    model, chance = market.model, market.chance
    accepted = [number for number, gift in model.gifts.items() if gift.status == ACCEPTED]
    last = chance.choice((*accepted[-1:] * 3, *chance.sample(accepted, min(2, len(accepted))), 9))
    records = model.accepted - model.withdrawn + chance.choice((0, 0, 0, 1))
    return wire.Snapshot(1, chance.randbytes(32), last, records)


def _publish(market: Market, who: Party) -> wire.Payload:
    """Model 1, or model 2 with a part of it."""
    model, chance = market.model, market.chance
    snapshot = max(1, len(model.snapshots) + chance.choice((-1, 0, 0, 0, 1)))
    if who is CREATOR:
        return release_of(1, snapshot)
    newest = model.current[1]
    version = chance.randrange(max(1, newest - 1), newest + 1)
    bps = chance.choice((999, 1_000, chance.randrange(1_000, 10_000)))
    return release_of(2, snapshot, ((1, version, bps),))


KINDS: Final[tuple[tuple[Callable[[Market, Party], wire.Payload], int], ...]] = (
    (lambda m, who: wire.Transfer(m.chance.choice(PEOPLE).key, m.some_amount(who), b""), 6),
    (
        lambda m, who: wire.OpenChannel(
            m.chance.choice((*PROVIDERS, *PROVIDERS, CREATOR)).key, who.key,
            m.chance.choice((9_999_999, m.chance.randrange(10**7, CHANNEL_MAX))), 0,
        ),
        4,
    ),
    (lambda m, who: wire.TopUpChannel(m.some_channel(who), m.chance.randrange(10**8)), 2),
    (lambda m, who: wire.CloseChannel(m.some_channel(who)), 2),
    (lambda m, who: m.some_consent(who), 1),
    (lambda m, who: wire.RegisterProvider(who.key, who.key), 1),
    (_update, 1),
    (_bond, 5),
    (_unbond, 4),
    (_contribute, 3),
    (_curate, 3),
    (_withdraw, 1),
    (_snapshot, 1),
    (_publish, 1),
    (lambda m, who: wire.FundMaintenance(m.chance.randrange(1, 4), m.some_amount(who)), 2),
    (lambda m, who: m.some_proof(who), 1),
    (_unjail, 2),
)  # fmt: skip
ACTORS: Final = {_curate: (STEWARD,), _snapshot: (STEWARD,), _publish: (STEWARD, CREATOR),
                 _update: PROVIDERS, _withdraw: CONTRIBUTORS, _unjail: PROVIDERS}  # fmt: skip


def run_economy(seed: int, blocks: int, transactions: int) -> Market:
    """A whole program; each of its blocks is compared."""
    chance = random.Random(seed)
    market = Market(chance)
    for _ in range(blocks):
        for _ in range(transactions):
            market.transact()
        for _ in range(chance.randrange(ANSWERS_MAX)):
            market.answer()
        if chance.random() < 0.1:
            market.replay()
        if chance.random() < 0.02:
            market.accuse()
        is_long = chance.random() < (0.3 if market.model.jailed else 0.02)
        market.block(LONG_STEP_MS if is_long else chance.choice(STEPS_MS))
    return market
