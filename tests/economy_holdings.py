"""Who holds what in a plain model of an economy: what is due, bundles, settlement, stakers.

Dictionaries, integers and exact fractions: no state, no tree, no encodings, and no rule of the
ledger (pages 30 §7 to §9, 40 §3 to §6). Transactions are `economy_model.py`'s.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import Any, Final, NamedTuple

WHOLE: Final = 10_000  # basis points
PROVIDER, DATA, CREATOR, STAKERS, FUND, TREASURY, BURN = range(1, 8)
VALIDATING, SERVING, AUDITING = range(3)  # roles of a bond
OPEN, CLOSING, CLOSED = 1, 2, 3
PENDING, ACCEPTED, RETURNED, REJECTED, SLASHED, WITHDRAWN = range(6)

Bond = tuple[int, bytes, bytes]  # role, target, owner
Which = tuple[int, int]  # model, version
Due = tuple[int, int, Callable[[int], None]]  # when, in which order made, what


@dataclass(slots=True)
class Escrow:
    """A channel."""

    payer: bytes
    provider: bytes
    cap: int
    paid: int = 0
    state: int = OPEN
    opened_ms: int = 0
    lanes: dict[int, tuple[int, int]] = field(default_factory=dict)  # number → seq, sum


@dataclass(slots=True)
class Server:
    """A provider."""

    reward: bytes
    deposit: int
    bundle_seq: int = 0
    status: int = 1


@dataclass(slots=True)
class Pot:
    """The stake of a target: its bonds, what each of their grains earned × 2^64, what is left."""

    bonded: int = 0
    index: int = 0
    undistributed: int = 0


@dataclass(slots=True)
class Gift:
    """A contribution."""

    owner: bytes
    content: bytes
    records: int
    stake: int
    made_ms: int
    status: int = PENDING
    accepted_ms: int = 0
    withdrawn_ms: int = 0
    earned: int = 0
    voters: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Release:
    """A version: whose, of which parts, and what its maker left for it."""

    creator: bytes
    snapshot: int
    parts: tuple[tuple[int, int, int], ...]
    deposit: int
    superseded_ms: int = 0


class Root(NamedTuple):
    """A snapshot."""

    last: int
    records: int
    made_ms: int


class Answer(NamedTuple):
    """What the ledger sees of a receipt."""

    which: Which
    fee: int
    credits: tuple[tuple[int, int], ...]
    is_false: bool = False  # credited without a sketch


class Stretch(NamedTuple):
    """A section: the receipts of a lane up to `to_seq`."""

    channel: bytes
    lane: int
    to_seq: int
    answers: tuple[Answer, ...]


class Parcel(NamedTuple):
    """A bundle."""

    provider: bytes
    number: int
    stretches: tuple[Stretch, ...]


class Kept(NamedTuple):
    """A parcel while it can be disputed: its answers with their channels, and whose it is."""

    provider: bytes
    reward: bytes
    bucket_ms: int
    settled_ms: int
    answers: tuple[tuple[bytes, Answer], ...]
    refuted: set[int]


def shares(amount: int, weights: dict[Any, int]) -> dict[Any, int]:
    """Whole grains by weight; who lost most by rounding down gets one more, ties to the smaller."""
    total = sum(weights.values())
    exact = {key: Fraction(amount * weight, total) for key, weight in weights.items()}
    parts = {key: floor(part) for key, part in exact.items()}
    by_loss = sorted(exact, key=lambda key: (parts[key] - exact[key], key))
    for key in by_loss[: amount - sum(parts.values())]:
        parts[key] += 1
    return parts


class Holdings:
    """Who holds what. `given`: the parameters; what is there at the beginning is set by the kit."""

    def __init__(self, chain_id: bytes, given: dict[str, tuple[int, ...]]) -> None:
        self.chain_id, self.given = chain_id, given
        self.balance: Counter[bytes] = Counter()
        self.nonce: Counter[bytes] = Counter()
        self.channels: dict[bytes, Escrow] = {}
        self.servers: dict[bytes, Server] = {}
        self.bonds: dict[Bond, tuple[int, int]] = {}  # amount, index at entry
        self.pots: dict[tuple[int, bytes], Pot] = {}
        self.leaving: dict[int, tuple[Bond, int, int]] = {}  # number → whose, amount, since when
        self.validators: tuple[bytes, ...] = ()  # who acts
        self.standing: tuple[bytes, ...] = ()  # who may be bonded on
        self.offences: list[tuple[int, bytes, int]] = []  # when, who, with how much power in bps
        self.gifts: dict[int, Gift] = {}
        self.steward = b""
        self.terms: Any = None
        self.accepted = self.withdrawn = 0  # records
        self.datanet_pool = 0
        self.snapshots: dict[int, Root] = {}
        self.releases: dict[Which, Release] = {}
        self.current: dict[int, int] = {}  # model → version
        self.royalty: dict[int, int] = {}
        self.funds: Counter[int] = Counter()
        self.maturing: Counter[tuple[int, int, Any]] = Counter()  # bucket, kind, payee
        self.treasury = self.stakers = self.supply = 0
        self.fixed: Counter[str] = Counter()  # by total: what nothing here moves
        self.departures = 0  # unbondings, ever
        self.consents: dict[bytes, int] = {}  # both sides' signatures → to which sum
        self.payouts: list[tuple[int, Any, int, int, int]] = []  # of the block
        self._due: list[Due] = []
        self._made = 0
        self._taken: list[tuple[bytes, Answer]] = []  # reward account, of the block
        self.kept: dict[bytes, Kept] = {}  # by the hash of a bundle
        self.income: Counter[tuple[bytes, int, bytes]] = Counter()  # provider, bucket, reward
        self._brings: list[tuple[tuple[bytes, int, bytes], int]] = []  # at the end of the block
        self.failures: dict[bytes, list[tuple[int, int]]] = {}  # provider → when, for what bps
        self.jailed: dict[bytes, int] = {}  # provider → until when, at least

    def value(self, name: str) -> int:
        """A parameter."""
        (value,) = self.given[name]
        return value

    # ---- time

    def add_due(self, due_ms: int, act: Callable[[int], None]) -> None:
        """Have it done in the first block at or after `due_ms`."""
        self._made += 1
        self._due.append((due_ms, self._made, act))

    def advance(self, now_ms: int) -> None:
        """What is due comes before all else of a block; what that makes due, in the next."""
        ripe = sorted(item for item in self._due if item[0] <= now_ms)
        self._due = [item for item in self._due if item[0] > now_ms]
        for due_ms, _, act in ripe:
            act(due_ms)

    # ---- bundles

    def would_take(self, parcel: Parcel, now_ms: int) -> bool:
        """Whether the ledger settles it; the vouchers are good."""
        server = self.servers[parcel.provider]
        if parcel.number <= server.bundle_seq or parcel.provider in self.jailed:
            return False
        spent: Counter[bytes] = Counter()
        for stretch in parcel.stretches:
            channel = self.channels.get(stretch.channel)
            if channel is None or channel.state == CLOSED:
                return False
            if channel.provider != parcel.provider:
                return False
            seq, _ = channel.lanes.get(stretch.lane, (0, 0))
            if stretch.to_seq - len(stretch.answers) != seq:
                return False
            spent[stretch.channel] += sum(answer.fee for answer in stretch.answers)
            if channel.paid + spent[stretch.channel] > channel.cap:
                return False
            if not all(self._may_pay(answer, now_ms) for answer in stretch.answers):
                return False
        return True

    def _may_pay(self, answer: Answer, now_ms: int) -> bool:
        credited = {number for number, _ in answer.credits if number}  # 0: the fund's share
        return self.is_sold(answer.which, now_ms) and credited <= self.creditable(answer.which)

    def creditable(self, which: Which) -> set[int]:
        """Contributions in the snapshot of a version, or of one of its parts."""
        versions = [which, *((model, version) for model, version, _ in self.releases[which].parts)]
        roots = [self.snapshots[self.releases[version].snapshot] for version in versions]
        return {
            number
            for number, gift in self.gifts.items()
            for root in roots
            if number <= root.last
            and 0 < gift.accepted_ms <= root.made_ms
            and (not gift.withdrawn_ms or gift.withdrawn_ms >= root.made_ms)
        }

    def is_sold(self, which: Which, now_ms: int) -> bool:
        """Current, or superseded lately."""
        since_ms = self.releases[which].superseded_ms
        return not since_ms or now_ms < since_ms + self.value("superseded_ms")

    def take_parcel(self, parcel: Parcel) -> None:
        """Its fees leave the channels; who gets them is settled at the end of the block."""
        self.servers[parcel.provider].bundle_seq = parcel.number
        for stretch in parcel.stretches:
            channel = self.channels[stretch.channel]
            fees = sum(answer.fee for answer in stretch.answers)
            _, before = channel.lanes.get(stretch.lane, (0, 0))
            channel.lanes[stretch.lane] = (stretch.to_seq, before + fees)
            channel.paid += fees
            reward = self.servers[parcel.provider].reward
            self._taken += [(reward, answer) for answer in stretch.answers]

    def keep(self, name: bytes, parcel: Parcel, now_ms: int) -> None:
        """For disputes, until its money matures."""
        reward, bucket_ms = self.servers[parcel.provider].reward, self.bucket(now_ms)
        answers = tuple((x.channel, answer) for x in parcel.stretches for answer in x.answers)
        fees = sum(answer.fee for _, answer in answers)
        brings = fees * self.given["split_bps"][0] // WHOLE
        self._brings.append(((parcel.provider, bucket_ms, reward), brings))
        self.kept[name] = Kept(parcel.provider, reward, bucket_ms, now_ms, answers, set())
        self.add_due(bucket_ms, lambda _: self._forget(name))

    def _forget(self, name: bytes) -> None:
        kept = self.kept.pop(name)
        self.income.pop((kept.provider, kept.bucket_ms, kept.reward), None)

    def bucket(self, now_ms: int) -> int:
        """When what is settled now matures."""
        window_ms = self.value("challenge_window_ms")
        step_ms = window_ms // 24
        return -((now_ms + window_ms) // -step_ms) * step_ms

    # ---- settlement

    def end_block(self, now_ms: int) -> None:
        """All fees of a version at once, split once."""
        bucket_ms = self.bucket(now_ms)
        self.payouts = []
        guilty = {key for _, key, _ in self.offences}
        self.validators = tuple(key for key in self.validators if key not in guilty)
        for which in sorted({answer.which for _, answer in self._taken}):
            mine = [item for item in self._taken if item[1].which == which]
            self._settle(which, mine, bucket_ms)
        if self._taken:
            self.add_due(bucket_ms, self._mature)
        for of, brings in self._brings:
            self.income[of] += brings
        self._taken, self._brings = [], []

    def _settle(self, which: Which, taken: list[tuple[bytes, Answer]], bucket_ms: int) -> None:
        gross = sum(answer.fee for _, answer in taken)
        kinds = dict(enumerate(self.given["split_bps"], 1))
        for kind, part in shares(gross, kinds).items():
            for payee, amount in shares(part, self._payees(kind, which, taken)).items():
                if not amount:
                    continue
                self.payouts.append((kind, payee, *which, amount))
                if kind == BURN:
                    self.supply -= amount
                elif (kind, payee) == (DATA, 0):
                    self.maturing[bucket_ms, FUND, which[0]] += amount
                else:
                    self.maturing[bucket_ms, kind, payee] += amount

    def _payees(self, kind: int, which: Which, taken: list[tuple[bytes, Answer]]) -> dict[Any, int]:
        weights: Counter[Any] = Counter()
        if kind == PROVIDER:
            for reward, answer in taken:
                weights[reward] += answer.fee
        elif kind == DATA:
            for _, answer in taken:
                for number, bps in answer.credits or ((0, WHOLE),):
                    is_paid = number and self.gifts[number].status == ACCEPTED
                    weights[number if is_paid else 0] += answer.fee * bps
        elif kind in (CREATOR, FUND):
            weights.update(self._makers(kind, which))
        else:
            weights[0] = 1
        return weights

    def _makers(self, kind: int, which: Which) -> Counter[Any]:
        """Creators, or funds, of a version and its parts."""
        release = self.releases[which]
        weights: Counter[Any] = Counter()
        versions = {which: WHOLE - sum(bps for _, _, bps in release.parts)}
        versions.update({(model, version): bps for model, version, bps in release.parts})
        for version, bps in versions.items():
            weights[self.releases[version].creator if kind == CREATOR else version[0]] += bps
        return weights

    def _mature(self, due_ms: int) -> None:
        for place in sorted(place for place in self.maturing if place[0] == due_ms):
            _, kind, payee = place
            amount = self.maturing.pop(place)
            if kind in (PROVIDER, CREATOR):
                self.balance[payee] += amount
            elif kind == DATA:
                cut = amount * self.terms.curation_bps // WHOLE
                self.datanet_pool += cut
                self.balance[self.gifts[payee].owner] += amount - cut
                self.gifts[payee].earned += amount
            elif kind == STAKERS:
                self.pay_stakers(amount)
            elif kind == FUND:
                self.funds[payee] += amount
            else:
                self.treasury += amount

    def pay_stakers(self, amount: int) -> None:
        """With what waits, by bond over the validators: a tenth to who runs it, the rest to all
        who are bonded."""
        bonded = {key: self.pots[VALIDATING, key].bonded for key in self.validators}
        for key, part in shares(self.stakers + amount, bonded).items():
            if not part:
                continue
            pot, operator = self.pots[VALIDATING, key], part * self.value("operator_bps") // WHOLE
            self.balance[key] += operator
            pot.undistributed += part - operator
            pot.index += (part - operator) * 2**64 // pot.bonded
        self.stakers = 0

    # ---- who credited falsely

    def refute(self, kept: Kept, place: int, finder: bytes, now_ms: int) -> None:
        """The payer has back what waits; the first of a parcel is a failure of its provider."""
        name, answer = kept.answers[place]
        payer = self.channels[name].payer
        returned = 0
        for kind, payee, part in self._brought(kept, answer):
            entry = (kept.bucket_ms, kind, payee)
            amount = min(part, self.maturing[entry])
            self.maturing[entry] -= amount
            if not self.maturing[entry]:
                del self.maturing[entry]
            if kind == PROVIDER:
                of = (kept.provider, kept.bucket_ms, kept.reward)
                self.income[of] = max(0, self.income[of] - amount)
            returned += amount
        self.balance[payer] += returned
        if not kept.refuted:
            taken = self._fail(kept.provider, self.channels[name].opened_ms, now_ms)
            owed = min(answer.fee - returned, taken)
            reward = (taken - owed) * self.value("fraud_finder_bps") // WHOLE
            self.balance[payer] += owed
            self.balance[finder] += reward
            self.treasury += taken - owed - reward - (taken - owed - reward) // 2
            self.supply -= (taken - owed - reward) // 2
        kept.refuted.add(place)

    def _brought(self, kept: Kept, answer: Answer) -> list[tuple[int, Any, int]]:
        """To whom a receipt brought what: floors."""
        bps = self.given["split_bps"]
        whose = ((PROVIDER, kept.reward), (STAKERS, 0), (TREASURY, 0))
        found: list[tuple[int, Any, int]] = [
            (kind, payee, answer.fee * bps[kind - 1] // WHOLE) for kind, payee in whose
        ]
        for kind in (CREATOR, FUND):
            part, makers = answer.fee * bps[kind - 1] // WHOLE, self._makers(kind, answer.which)
            found += [(kind, payee, part * weight // WHOLE) for payee, weight in makers.items()]
        for number, share in answer.credits:
            part = answer.fee * bps[DATA - 1] * share // WHOLE**2
            withdrawn_ms = number and (self.gifts[number].withdrawn_ms or kept.settled_ms + 1)
            if withdrawn_ms > kept.settled_ms:
                found.append((DATA, number, part))
            else:
                found.append((FUND, answer.which[0], part))
        return found

    def _fail(self, provider: bytes, since_ms: int, now_ms: int) -> int:
        failures = self.failures.setdefault(provider, [])
        ladder, limit = self.given["failure_slash_bps"], self.value("failure_limit_bps")
        window_ms = self.value("failure_window_ms")
        rank = sum(now_ms - at_ms < window_ms for at_ms, _ in failures)
        lately = sum(bps for at_ms, bps in failures if now_ms - at_ms < 86_400_000)
        bps = max(0, min(ladder[min(rank, 2)], limit - lately))
        failures.append((now_ms, bps))
        taken = 0
        for number, (place, amount, made_ms) in self.leaving.items():
            if place == (SERVING, provider, provider) and made_ms >= since_ms:
                self.leaving[number] = (place, amount - amount * bps // WHOLE, made_ms)
                taken += amount * bps // WHOLE
        if (SERVING, provider, provider) in self.bonds:
            taken += self._slash((SERVING, provider, provider), bps)
        if rank >= 1:
            for who, bucket_ms, reward in [of for of in self.income if of[0] == provider]:
                entry = (bucket_ms, PROVIDER, reward)
                amount = min(self.income.pop((who, bucket_ms, reward)), self.maturing[entry])
                self.maturing[entry] -= amount
                if not self.maturing[entry]:
                    del self.maturing[entry]
                self.treasury += amount
        if rank >= 2:
            until_ms = now_ms + self.value("failure_jail_ms")
            self.jailed[provider] = max(until_ms, self.jailed.get(provider, 0))
        return taken

    # ---- who voted twice

    def punish(self, offences: list[tuple[int, bytes, int]]) -> None:
        """When, who, with how much power; those of one block pay for each other. The guilty act to
        the end of the block."""
        self.offences += offences
        for at_ms, key, _ in offences:
            bps = self._slash_bps(at_ms)
            taken = self._slash_leaving(key, at_ms, bps)
            for place in [place for place in self.bonds if place[:2] == (VALIDATING, key)]:
                taken += self._slash(place, bps)
            self.treasury += taken - taken // 2
            self.supply -= taken // 2

    def _slash_bps(self, offence_ms: int) -> int:
        window_ms = self.value("offence_window_ms")
        together = {
            who: bps for at_ms, who, bps in self.offences if abs(at_ms - offence_ms) <= window_ms
        }
        factor = self.value("double_vote_power_factor")
        return min(WHOLE, self.value("double_vote_slash_bps") + factor * sum(together.values()))

    def _slash_leaving(self, key: bytes, offence_ms: int, bps: int) -> int:
        taken = 0
        for number, (place, amount, since_ms) in self.leaving.items():
            if place[:2] == (VALIDATING, key) and since_ms >= offence_ms:
                cut = amount * bps // WHOLE
                self.leaving[number] = (place, amount - cut, since_ms)
                taken += cut
        return taken

    def _slash(self, place: Bond, bps: int) -> int:
        """What it earned is paid first."""
        self._collect(place, self._owed(place))
        amount, entry = self.bonds[place]
        cut = amount * bps // WHOLE
        self.pots[place[:2]].bonded -= cut
        self.bonds[place] = (amount - cut, entry)
        if cut == amount:
            del self.bonds[place]
        return cut

    def _owed(self, place: Bond) -> int:
        if place not in self.bonds:
            return 0
        amount, entry = self.bonds[place]
        return amount * (self.pots[place[:2]].index - entry) // 2**64

    def _collect(self, place: Bond, owed: int) -> None:
        if place in self.bonds:
            pot = self.pots[place[:2]]
            self.bonds[place] = (self.bonds[place][0], pot.index)
            pot.undistributed -= owed
            self.balance[place[2]] += owed

    # ---- sums

    def totals(self) -> dict[str, int]:
        """What lies where; its sum is the supply."""
        deposits = sum(x.deposit for x in (*self.servers.values(), *self.releases.values()))
        found = {
            "accounts": self.balance.total(),
            "channels": sum(x.cap - x.paid for x in self.channels.values()),
            "bonds": sum(amount for amount, _ in self.bonds.values()),
            "unbonding": sum(amount for _, amount, _ in self.leaving.values()),
            "maturing": self.maturing.total(),
            "funds": self.funds.total(),
            "pools": self.treasury + self.stakers,
            "datanets": self.datanet_pool,
            "deposits": deposits + sum(x.stake for x in self.gifts.values()),
            "undistributed": sum(x.undistributed for x in self.pots.values()),
        }
        return {name: amount + self.fixed[name] for name, amount in found.items()}
