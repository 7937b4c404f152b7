"""A plain model of an economy, beside the ledger: every transaction's code and effect.

It says beforehand which code a transaction will get, which bundles settle, and what everybody holds
after each block (pages 30 §11, 40 §4 to §8), from `economy_holdings.py`.
What it leaves out: corrections, new validators, the end of a model, slashes but for double
votes and false credits.
"""

from collections.abc import Callable
from typing import Any, Final

from economy_holdings import (
    ACCEPTED,
    AUDITING,
    CLOSED,
    CLOSING,
    OPEN,
    PENDING,
    REJECTED,
    RETURNED,
    SERVING,
    VALIDATING,
    WHOLE,
    WITHDRAWN,
    Bond,
    Escrow,
    Gift,
    Holdings,
    Pot,
    Release,
    Root,
    Server,
)

from node.ledger.wire import transactions as wire
from node.ledger.wire.openings import decode_subject
from node.ledger.wire.orders import channel_id

PRICE: Final = 100  # grains per weight: the floor, as all these blocks are below the target
PAIR_MAX: Final = 64
LEAVING_MAX: Final = 7
SLOPPY_BPS: Final = 1_000
INSUFFICIENT, NOT_FOUND, NOT_YOURS, WRONG_STATE, EXISTS, LIMIT, BAD_VALUE, TIME, BAD_PROOF = (
    20, 21, 22, 23, 24, 25, 26, 27, 28,
)  # fmt: skip


class Refused(Exception):
    """The model's refusal; its argument is the code."""


class Economy(Holdings):
    """Its transactions."""

    def take(self, raw: bytes, now_ms: int, proposer: bytes) -> int:
        """The code of a transaction; its charge is paid either way."""
        tx = wire.decode_transaction(raw)
        charge = tx.weight * PRICE
        burnt = charge * self.value("tx_burn_bps") // WHOLE
        self.nonce[tx.sender] += 1
        self.balance[tx.sender] -= charge
        self.balance[proposer] += charge - burnt
        self.supply -= burnt
        try:
            ACTS[type(tx.payload)](self, tx, tx.payload, now_ms)
        except Refused as refused:
            if isinstance(tx.payload, wire.FraudProof) and refused.args[0] == BAD_PROOF:
                self.balance[tx.sender] -= self.value("fraud_bond")
                self.supply -= self.value("fraud_bond")
            return int(refused.args[0])
        return 0

    def _pay(self, sender: bytes, amount: int) -> None:
        check(self.balance[sender] >= amount, INSUFFICIENT)
        self.balance[sender] -= amount

    def transfer(self, tx: Any, order: wire.Transfer, now_ms: int) -> None:
        """Type 1."""
        check(order.amount > 0, BAD_VALUE)
        self._pay(tx.sender, order.amount)
        self.balance[order.to] += order.amount

    # channels

    def open_channel(self, tx: Any, order: wire.OpenChannel, now_ms: int) -> None:
        """Type 10."""
        server = self.servers.get(order.provider)
        check(server is not None, NOT_FOUND)
        pot = self.pots.get((SERVING, order.provider), Pot())
        is_active = server and server.status == 1 and order.provider not in self.jailed
        check(is_active and pot.bonded >= self.value("provider_bond_min"), WRONG_STATE)
        check(order.cap >= self.value("channel_cap_min"), BAD_VALUE)
        pair = (tx.sender, order.provider)
        alive = [x for x in self.channels.values() if x.state != CLOSED]
        check(sum((x.payer, x.provider) == pair for x in alive) < PAIR_MAX, LIMIT)
        self._pay(tx.sender, order.cap)
        name = channel_id(self.chain_id, tx.sender, order.provider, tx.nonce)
        self.channels[name] = Escrow(tx.sender, order.provider, order.cap, opened_ms=now_ms)

    def top_up(self, tx: Any, order: wire.TopUpChannel, now_ms: int) -> None:
        """Type 11."""
        channel = self._channel(order.channel)
        check(channel.payer == tx.sender, NOT_YOURS)
        check(channel.state == OPEN, WRONG_STATE)
        self._pay(tx.sender, order.amount)
        channel.cap += order.amount

    def close_channel(self, tx: Any, order: wire.CloseChannel, now_ms: int) -> None:
        """Type 12."""
        channel = self._channel(order.channel)
        check(tx.sender in (channel.payer, channel.provider), NOT_YOURS)
        if tx.sender == channel.provider and channel.state != CLOSED:
            self._end_channel(order.channel, now_ms)
            return
        check(channel.state == OPEN, WRONG_STATE)
        channel.state = CLOSING
        due_ms = now_ms + self.value("channel_close_ms")
        self.add_due(due_ms, lambda at_ms: self._close_late(order.channel, at_ms))

    def coop_close(self, tx: Any, order: wire.CoopClose, now_ms: int) -> None:
        """Type 13."""
        channel = self._channel(order.channel)
        check(channel.state != CLOSED, WRONG_STATE)
        check(self.consents.get(order.payer_signature) == channel.paid, BAD_PROOF)
        self._end_channel(order.channel, now_ms)

    def _close_late(self, name: bytes, now_ms: int) -> None:
        if name in self.channels and self.channels[name].state == CLOSING:
            self._end_channel(name, now_ms)

    def _end_channel(self, name: bytes, now_ms: int) -> None:
        channel = self.channels[name]
        self.balance[channel.payer] += channel.cap - channel.paid
        channel.cap, channel.state = channel.paid, CLOSED
        forget_ms = now_ms + self.value("channel_forget_ms")
        self.add_due(forget_ms, lambda _: self.channels.__delitem__(name))

    def _channel(self, name: bytes) -> Escrow:
        check(name in self.channels, NOT_FOUND)
        return self.channels[name]

    # providers and bonds

    def register(self, tx: Any, order: wire.RegisterProvider, now_ms: int) -> None:
        """Type 20."""
        check(tx.sender not in self.servers, EXISTS)
        deposit = self.value("provider_deposit")
        self._pay(tx.sender, deposit)
        self.servers[tx.sender] = Server(order.reward_account, deposit)

    def update_provider(self, tx: Any, order: wire.UpdateProvider, now_ms: int) -> None:
        """Type 21."""
        check(tx.sender in self.servers, NOT_FOUND)
        check(tx.sender not in self.jailed, WRONG_STATE)
        check(order.status in (1, 2), BAD_VALUE)
        server = self.servers[tx.sender]
        server.reward, server.status = order.reward_account, order.status

    def unjail(self, tx: Any, order: wire.Unjail, now_ms: int) -> None:
        """Type 24, of providers; who failed once is known, free or not."""
        check(order.role == SERVING and tx.sender in self.failures, NOT_FOUND)
        check(tx.sender in self.jailed, WRONG_STATE)
        check(now_ms >= self.jailed[tx.sender], TIME)
        bonded = self.pots.get((SERVING, tx.sender), Pot()).bonded
        check(bonded >= self.value("provider_bond_min"), WRONG_STATE)
        del self.jailed[tx.sender]

    def bond(self, tx: Any, order: wire.Bond, now_ms: int) -> None:
        """Type 22; who is not in the set bonds on its members only."""
        role, target, amount, owner = order.role, order.target, order.amount, tx.sender
        place = (role, target, owner)
        check(role in (VALIDATING, SERVING, AUDITING), BAD_VALUE)
        check(amount or (role == VALIDATING and place in self.bonds), BAD_VALUE)
        if role == SERVING:
            check(target == owner, BAD_VALUE)
            check(target in self.servers, NOT_FOUND)
        if role == VALIDATING and target != owner:
            check(target in self.standing, NOT_FOUND)
            check(not amount or amount >= self.value("delegation_min"), BAD_VALUE)
        owed = self._owed(place)
        check(self.balance[owner] + owed >= amount, INSUFFICIENT)
        self._collect(place, owed)
        if amount:
            self.balance[owner] -= amount
            pot = self.pots.setdefault((role, target), Pot())
            pot.bonded += amount
            held, _ = self.bonds.get(place, (0, 0))
            self.bonds[place] = (held + amount, pot.index)

    def unbond(self, tx: Any, order: wire.Unbond, now_ms: int) -> None:
        """Type 23."""
        role, target, amount, owner = order.role, order.target, order.amount, tx.sender
        place = (role, target, owner)
        check(place in self.bonds, NOT_FOUND)
        held, _ = self.bonds[place]
        check(amount <= held, INSUFFICIENT)
        is_delegation = role == VALIDATING and target != owner
        is_small = 0 < held - amount < self.value("delegation_min")
        check(not (amount and is_delegation and is_small), LIMIT)
        on_its_way = sum(whose == place for whose, _, _ in self.leaving.values())
        check(not amount or on_its_way < LEAVING_MAX, LIMIT)
        self._collect(place, self._owed(place))
        if amount:
            self._start_leaving(place, amount, now_ms)

    def _start_leaving(self, place: Bond, amount: int, now_ms: int) -> None:
        held, entry = self.bonds[place]
        self.pots[place[:2]].bonded -= amount
        self.bonds[place] = (held - amount, entry)
        if held == amount:
            del self.bonds[place]
        self.departures += 1
        number = self.departures
        self.leaving[number] = (place, amount, now_ms)
        self.add_due(now_ms + self.value("unbonding_ms"), lambda _: self._leave(number))

    def _leave(self, number: int) -> None:
        (_, _, owner), amount, _ = self.leaving.pop(number)
        self.balance[owner] += amount

    # data

    def contribute(self, tx: Any, order: wire.Contribute, now_ms: int) -> None:
        """Type 31, to Datanet 1."""
        check(order.datanet == 1, NOT_FOUND)
        check(order.records > 0, BAD_VALUE)
        is_new = all(
            gift.content != order.content_hash or gift.status == RETURNED
            for gift in self.gifts.values()
        )
        check(is_new, EXISTS)
        stake = self.value("contribution_bond") + self.terms.stake_per_record * order.records
        self._pay(tx.sender, stake)
        number = len(self.gifts) + 1
        gift = Gift(tx.sender, order.content_hash, order.records, stake, now_ms)
        self.gifts[number] = gift
        self.add_due(now_ms + self.terms.review_ms, lambda _: self._end_review(gift))

    def curate(self, tx: Any, order: wire.Curate, now_ms: int) -> None:
        """Type 32, by the only curator; one vote decides, but for a slash."""
        check(order.contribution in self.gifts, NOT_FOUND)
        gift = self.gifts[order.contribution]
        check(tx.sender == self.steward != gift.owner, NOT_YOURS)
        check(1 <= order.decision <= 4, WRONG_STATE)
        check(gift.status == PENDING, WRONG_STATE)
        check(now_ms < gift.made_ms + self.terms.review_ms, TIME)
        check(tx.sender not in gift.voters, EXISTS)
        gift.voters.add(tx.sender)
        pay = min(self.value("review_fee"), self.datanet_pool // 10)
        self.datanet_pool -= pay
        self.balance[tx.sender] += pay
        if order.decision == 1:
            self._accept(gift, now_ms)
        elif order.decision in (2, 3):
            self._send_back(gift, 0 if order.decision == 2 else SLOPPY_BPS)
            gift.status = RETURNED if order.decision == 2 else REJECTED

    def _accept(self, gift: Gift, now_ms: int) -> None:
        gift.status, gift.accepted_ms = ACCEPTED, now_ms
        half = gift.stake // 2
        self.balance[gift.owner] += gift.stake - half
        gift.stake = half
        self.accepted += gift.records
        self.add_due(now_ms + self.value("stake_hold_ms"), lambda _: self._release(gift))

    def _release(self, gift: Gift) -> None:
        if gift.status == ACCEPTED:
            self._send_back(gift, 0)

    def _end_review(self, gift: Gift) -> None:
        if gift.status == PENDING:
            self._send_back(gift, 0)
            gift.status = RETURNED

    def _send_back(self, gift: Gift, taken_bps: int) -> None:
        """Half of what is taken is burnt, half is the treasury's."""
        taken = gift.stake * taken_bps // WHOLE
        self.treasury += taken // 2
        self.supply -= taken - taken // 2
        self.balance[gift.owner] += gift.stake - taken
        gift.stake = 0

    def withdraw(self, tx: Any, order: wire.WithdrawContribution, now_ms: int) -> None:
        """Type 33."""
        check(order.contribution in self.gifts, NOT_FOUND)
        gift = self.gifts[order.contribution]
        check(gift.owner == tx.sender, NOT_YOURS)
        is_pending = gift.status == PENDING and not gift.voters
        check(gift.status == ACCEPTED or is_pending, WRONG_STATE)
        if is_pending:
            gift.content = b""  # it may come again
        else:
            self.withdrawn += gift.records
        gift.status, gift.withdrawn_ms = WITHDRAWN, now_ms
        due_ms = now_ms + self.value("challenge_window_ms")
        self.add_due(due_ms, lambda _: self._send_back(gift, 0))

    def snapshot(self, tx: Any, order: wire.Snapshot, now_ms: int) -> None:
        """Type 34."""
        check(order.datanet == 1 and order.last_contribution in self.gifts, NOT_FOUND)
        check(tx.sender == self.steward, NOT_YOURS)
        check(self.gifts[order.last_contribution].status == ACCEPTED, BAD_VALUE)
        check(order.records == self.accepted - self.withdrawn, BAD_VALUE)
        root = Root(order.last_contribution, order.records, now_ms)
        self.snapshots[len(self.snapshots) + 1] = root

    # models

    def publish(self, tx: Any, order: wire.PublishVersion, now_ms: int) -> None:
        """Type 41; a part is of a model without parts."""
        check(order.model in self.current, NOT_FOUND)
        before = self.releases[order.model, self.current[order.model]]
        check(before.creator == tx.sender, NOT_YOURS)
        check(order.snapshot in self.snapshots, NOT_FOUND)
        for model, version, bps in order.parts:
            check((model, version) in self.releases, NOT_FOUND)
            check(self.is_sold((model, version), now_ms), WRONG_STATE)
            check(bps >= self.royalty[model], BAD_VALUE)
        records = self.snapshots[order.snapshot].records * self.value("version_record_fee")
        deposit, fee = self.value("version_deposit"), self.value("version_fee")
        self._pay(tx.sender, deposit + fee + records)
        self.treasury += fee
        self.pay_stakers(records)
        before.superseded_ms = now_ms
        due_ms = now_ms + self.value("version_deposit_ms")
        self.add_due(due_ms, lambda _: self._return_deposit(before))
        self.current[order.model] += 1
        which = (order.model, self.current[order.model])
        self.releases[which] = Release(tx.sender, order.snapshot, order.parts, deposit)

    def _return_deposit(self, release: Release) -> None:
        self.balance[release.creator] += release.deposit
        release.deposit = 0

    def fund(self, tx: Any, order: wire.FundMaintenance, now_ms: int) -> None:
        """Type 50."""
        check(order.model in self.current, NOT_FOUND)
        check(order.amount > 0, BAD_VALUE)
        self._pay(tx.sender, order.amount)
        self.funds[order.model] += order.amount

    # disputes

    def prove_fraud(self, tx: Any, order: wire.FraudProof, now_ms: int) -> None:
        """Type 60: here always that an answer is credited without a sketch."""
        check(self.balance[tx.sender] >= self.value("fraud_bond"), INSUFFICIENT)
        check(order.kind == 1, BAD_VALUE)
        subject: Any = decode_subject(order.kind, order.subject)
        kept = self.kept.get(subject.bundle)
        check(kept is not None and kept.settled_ms < now_ms < kept.bucket_ms, TIME)
        assert kept is not None
        check(subject.place not in kept.refuted, EXISTS)
        check(kept.answers[subject.place][1].is_false, BAD_PROOF)
        self.refute(kept, subject.place, tx.sender, now_ms)


def check(is_good: object, code: int) -> None:
    """Raise the refusal unless it is good."""
    if not is_good:
        raise Refused(code)


ACTS: Final[dict[type[Any], Callable[[Economy, Any, Any, int], None]]] = {
    wire.Transfer: Economy.transfer,
    wire.OpenChannel: Economy.open_channel,
    wire.TopUpChannel: Economy.top_up,
    wire.CloseChannel: Economy.close_channel,
    wire.CoopClose: Economy.coop_close,
    wire.RegisterProvider: Economy.register,
    wire.UpdateProvider: Economy.update_provider,
    wire.Bond: Economy.bond,
    wire.Unbond: Economy.unbond,
    wire.Unjail: Economy.unjail,
    wire.Contribute: Economy.contribute,
    wire.Curate: Economy.curate,
    wire.WithdrawContribution: Economy.withdraw,
    wire.Snapshot: Economy.snapshot,
    wire.PublishVersion: Economy.publish,
    wire.FundMaintenance: Economy.fund,
    wire.FraudProof: Economy.prove_fraud,
}
