"""A plain model of accounts and channels beside the real ledger, and a program of chance over both.

The model is dictionaries and sums: no state, no tree, no encodings. It says beforehand which code
each transaction will get and what everybody then holds; after each block the ledger must agree,
grain by grain. Types outside it (other bonds, Datanets, models) are `test_programs.py`'s.
"""

import random
from typing import Any, Final, NamedTuple

from bundle_kit import Party
from chain_kit import (
    CONTRIBUTORS,
    CREATOR,
    FAUCET,
    OPEN,
    PAYER,
    PROVIDER,
    STEWARD,
    VALIDATORS,
    TinyChain,
    accusation,
    coop_close,
)

from node.ledger import purses, tables
from node.ledger.wire import transactions as wire
from node.ledger.wire.orders import channel_id
from node.ledger.wire.receipts import Place, decode_receipt

PEOPLE: Final = (FAUCET, STEWARD, CREATOR, PAYER, *CONTRIBUTORS)
SEED: Final = 20
BLOCKS: Final = 270
ACCUSED_BLOCKS: Final = 20  # the last ones: a jailed provider opens no channels
PER_BLOCK: Final = 42
PRICE: Final = 100  # grains per weight: the floor, as all these blocks are below the target
BURN_BPS: Final = 5_000
CAP_MIN: Final = 10_000_000
PAIR_MAX: Final = 64
MAX_FEE: Final = OPEN
STORY_ENDS_MS: Final = 40 * 86_400_000  # the story's stakes have come back
STEPS_MS: Final = (1_000, 30_000, 3_600_000)
INSUFFICIENT, NOT_FOUND, NOT_YOURS, WRONG_STATE, EXISTS, LIMIT, BAD_VALUE, LATE, BAD_PROOF = (
    20, 21, 22, 23, 24, 25, 26, 27, 28,
)  # fmt: skip
SLASH_BPS: Final = 500
FINDER_BPS: Final = 500


class Refused(Exception):
    """The model's refusal; its argument is the code."""


class Escrow(NamedTuple):
    """A channel as the model knows it."""

    payer: bytes
    provider: bytes
    cap: int
    state: int
    close_at_ms: int = 0
    forget_at_ms: int = 0


class Model:
    """Who holds what. Only this file's transactions move anything."""

    def __init__(self, chain: TinyChain) -> None:
        state = chain.state()
        everybody = (*PEOPLE, *VALIDATORS)
        self.balance = {who.key: state.account(who.key).balance for who in everybody}
        self.nonce = {who.key: state.account(who.key).nonce for who in everybody}
        self.channels: dict[bytes, Escrow] = {}
        self.supply = state.supply()
        self.bond = state.get(tables.STAKE, tables.ROLE_PROVIDER, PROVIDER.key).bonded
        self.punished: set[tuple[bytes, int, int]] = set()
        given = dict(chain.genesis.parameters)
        self._chain_id = chain.chain_id
        (self._close_ms,), (self._forget_ms,) = (
            given[b"channel_close_ms"],
            given[b"channel_forget_ms"],
        )

    def advance(self, now_ms: int) -> None:
        """What is due happens before anything else of a block; what that makes due, in the next."""
        for channel, found in list(self.channels.items()):
            if found.state == tables.CHANNEL_CLOSING and found.close_at_ms <= now_ms:
                self._return_rest(channel, found.close_at_ms)
            elif found.state == tables.CHANNEL_CLOSED and found.forget_at_ms <= now_ms:
                del self.channels[channel]

    def take(self, raw: bytes, now_ms: int, proposer: bytes) -> int:
        """The code of a transaction; its charge is paid either way."""
        tx = wire.decode_transaction(raw)
        charge = tx.weight * PRICE
        burnt = charge * BURN_BPS // 10_000
        self.nonce[tx.sender] += 1
        self.balance[tx.sender] -= charge
        self.balance[proposer] += charge - burnt
        self.supply -= burnt
        try:
            self._apply(tx, now_ms)
        except Refused as refused:
            return int(refused.args[0])
        return 0

    def _apply(self, tx: wire.Transaction, now_ms: int) -> None:
        match tx.payload:
            case wire.Transfer(to, amount, _):
                self._check(amount > 0, BAD_VALUE)
                self._pay(tx.sender, amount)
                self.balance[to] += amount
            case wire.MultiTransfer(payments):
                payees = [to for to, _ in payments]
                is_sound = payees and payees == sorted(set(payees))
                self._check(is_sound and all(amount for _, amount in payments), BAD_VALUE)
                self._pay(tx.sender, sum(amount for _, amount in payments))
                for to, amount in payments:
                    self.balance[to] += amount
            case wire.OpenChannel(provider, _, cap, _):
                self._check(provider == PROVIDER.key, NOT_FOUND)
                self._check(not self.punished, WRONG_STATE)
                self._check(cap >= CAP_MIN, BAD_VALUE)
                self._check(self._open_between(tx.sender, provider) < PAIR_MAX, LIMIT)
                self._pay(tx.sender, cap)
                name = channel_id(self._chain_id, tx.sender, provider, tx.nonce)
                self.channels[name] = Escrow(tx.sender, provider, cap, tables.CHANNEL_OPEN)
            case wire.TopUpChannel(channel, amount):
                found = self._of_payer(channel, tx.sender)
                self._check(found.state == tables.CHANNEL_OPEN, WRONG_STATE)
                self._pay(tx.sender, amount)
                self.channels[channel] = found._replace(cap=found.cap + amount)
            case wire.CloseChannel(channel):
                self._close(channel, tx.sender, now_ms)
            case wire.CoopClose(channel, payers, _):
                found = self._known(channel)
                self._check(found.state != tables.CHANNEL_CLOSED, WRONG_STATE)
                self._check(payers != bytes(64), BAD_PROOF)
                self._return_rest(channel, now_ms)
            case wire.Evidence(first, signature, second, _):
                self._check(first < second, BAD_VALUE)
                self._accuse(decode_receipt(first).place, signature != bytes(64), tx.sender)
            case _:
                raise AssertionError(tx.type_name)

    def _accuse(self, place: Place, is_signed: bool, finder: bytes) -> None:
        self._check(place not in self.punished, EXISTS)
        self._check(place[0] in self.channels, LATE)
        self._check(is_signed, BAD_PROOF)
        self.punished.add(place)
        taken = self.bond * SLASH_BPS // 10_000
        reward = taken * FINDER_BPS // 10_000  # the payer has paid for nothing
        self.bond -= taken
        self.balance[finder] += reward
        self.supply -= (taken - reward) // 2

    def _close(self, channel: bytes, sender: bytes, now_ms: int) -> None:
        found = self._known(channel)
        self._check(sender in (found.payer, found.provider), NOT_YOURS)
        if sender == found.provider and found.state != tables.CHANNEL_CLOSED:
            self._return_rest(channel, now_ms)
            return
        self._check(found.state == tables.CHANNEL_OPEN, WRONG_STATE)
        closing = found._replace(state=tables.CHANNEL_CLOSING, close_at_ms=now_ms + self._close_ms)
        self.channels[channel] = closing

    def _return_rest(self, channel: bytes, now_ms: int) -> None:
        found = self.channels[channel]
        self.balance[found.payer] += found.cap
        closed = found._replace(state=tables.CHANNEL_CLOSED, cap=0)  # nothing was paid
        self.channels[channel] = closed._replace(forget_at_ms=now_ms + self._forget_ms)

    def _known(self, channel: bytes) -> Escrow:
        self._check(channel in self.channels, NOT_FOUND)
        return self.channels[channel]

    def _of_payer(self, channel: bytes, sender: bytes) -> Escrow:
        found = self._known(channel)
        self._check(sender == found.payer, NOT_YOURS)
        return found

    def _open_between(self, payer: bytes, provider: bytes) -> int:
        return sum(
            (each.payer, each.provider) == (payer, provider) and each.state != tables.CHANNEL_CLOSED
            for each in self.channels.values()
        )

    def _pay(self, sender: bytes, amount: int) -> None:
        self._check(self.balance[sender] >= amount, INSUFFICIENT)
        self.balance[sender] -= amount

    @staticmethod
    def _check(is_good: object, code: int) -> None:
        if not is_good:
            raise Refused(code)


class MoneyProgram:
    """Blocks of transactions of chance, foretold by the model."""

    def __init__(self, seed: int) -> None:
        self.chance, self.chain = random.Random(seed), TinyChain()
        self.chain.tell_story()
        self.chain.block(later_ms=STORY_ENDS_MS)
        self.model = Model(self.chain)
        self.accuses = False
        self.codes: dict[int, int] = {}  # how often each was given
        self.count = 0

    def block(self, transactions: int) -> None:
        """One block; asserts all that the model foretold."""
        model, chain = self.model, self.chain
        later_ms = self.chance.choice(STEPS_MS)
        now_ms, proposer = chain.time_ms + later_ms, chain.validators.turn
        model.advance(now_ms)
        raws, foretold = [], []
        for _ in range(transactions):
            who = self.chance.choice((*PEOPLE, PROVIDER))
            if model.balance[who.key] < MAX_FEE:
                continue  # it could not pay, so nobody would put it into a block
            body = wire.encode_body(
                who.key, nonce=model.nonce[who.key], max_fee=MAX_FEE,
                valid_until_ms=now_ms + 1, payload=self._payload(who),
            )  # fmt: skip
            raws.append(wire.sign_transaction(chain.chain_id, who.seed, body))
            foretold.append(model.take(raws[-1], now_ms, proposer))
        outcome = chain.block(*raws, later_ms=later_ms)
        assert list(outcome.codes) == foretold
        self.count += len(raws)
        for code in foretold:
            self.codes[code] = self.codes.get(code, 0) + 1
        self._compare()

    def _compare(self) -> None:
        model, state = self.model, self.chain.state()
        for account, balance in model.balance.items():
            found = state.account(account)
            assert (found.balance, found.nonce) == (balance, model.nonce[account])
        records = {key: record for (key,), record in state.scan(tables.CHANNEL)}
        assert records.keys() == model.channels.keys()
        for channel, escrow in model.channels.items():
            record = records[channel]
            assert (record.payer, record.provider) == (escrow.payer, escrow.provider)
            assert (record.cap, record.state) == (escrow.cap, escrow.state)
        assert state.held(purses.bond(tables.ROLE_PROVIDER, *(PROVIDER.key,) * 2)) == model.bond
        assert sum(state.totals()) == state.supply() == model.supply
        assert self.chain.headers[-1].supply == model.supply

    def _payload(self, who: Party) -> wire.Payload:
        chance, balance = self.chance, self.model.balance[who.key]
        amount = chance.choice((0, 1, chance.randrange(10**9), balance // 3, balance + 1))
        cap = chance.choice((CAP_MIN - 1, CAP_MIN, chance.randrange(CAP_MIN, 10**12)))
        to = chance.choice(PEOPLE).key
        provider = chance.choice((PROVIDER.key, PROVIDER.key, PROVIDER.key, to))
        channel = self._channel(who)
        kinds: tuple[Any, ...] = (
            lambda: wire.Transfer(to, amount, chance.randbytes(chance.randrange(9))),
            lambda: wire.MultiTransfer(self._payments(balance)),
            lambda: wire.OpenChannel(provider, who.key, cap, 0),
            lambda: wire.TopUpChannel(channel, amount),
            lambda: wire.CloseChannel(channel),
            lambda: self._agreed(channel),
            lambda: self._accusation(channel),
        )
        made: wire.Payload = chance.choices(kinds, (6, 3, 6, 3, 3, 2, 2 * self.accuses))[0]()
        return made

    def _payments(self, balance: int) -> tuple[tuple[bytes, int], ...]:
        payees = [who.key for who in self.chance.sample(PEOPLE, self.chance.randrange(5))]
        if self.chance.random() < 0.8:
            payees.sort()
        most = self.chance.choice((10**9, balance))
        return tuple((payee, self.chance.randrange(1 + most // 2)) for payee in payees)

    def _channel(self, who: Party) -> bytes:
        """Mostly one that is open, often an own one."""
        known = list(self.model.channels.items())
        alive = [name for name, found in known if found.state != tables.CHANNEL_CLOSED]
        own = [name for name in alive if who.key in self.model.channels[name][:2]]
        wanted = self.chance.choice((own, own, alive, [name for name, _ in known]))
        return self.chance.choice(wanted) if wanted else self.chance.randbytes(32)

    def _agreed(self, channel: bytes) -> wire.CoopClose:
        found = self.model.channels.get(channel)
        signers = (*PEOPLE, PROVIDER)
        payer = next(who for who in signers if found is None or who.key == found.payer)
        made = coop_close(self.chain.chain_id, channel, 0, payer, PROVIDER)
        return made._replace(payer_signature=bytes(64)) if self.chance.random() < 0.3 else made

    def _accusation(self, channel: bytes) -> wire.Evidence:
        """Of few places, so that some come again."""
        seq = self.chance.randrange(1, 3)
        made = accusation(self.chain.chain_id, channel, PROVIDER, seq=seq, fee=10**6)
        spoilt = (made._replace(signature_a=bytes(64)), wire.Evidence(*made[2:], *made[:2]))
        return self.chance.choices((made, *spoilt), (8, 1, 1))[0]


def run_money(seed: int, blocks: int, transactions: int) -> MoneyProgram:
    """A whole program; each of its blocks is compared."""
    program = MoneyProgram(seed)
    for number in range(blocks):
        program.accuses = number >= blocks - ACCUSED_BLOCKS
        program.block(transactions)
    return program
