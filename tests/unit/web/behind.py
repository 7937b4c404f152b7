"""A backend that answers from a table, served on a real socket: for tests of web and cli."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import trio

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.parameters import devnet_parameters
from node.ledger.wire.codes import code_name
from node.wallet.disclosure import Disclosure
from node.web import answers
from node.web.app import Backend, Order, make_app, serve_socket
from node.web.ledger import EarningsQuery, Ledger
from node.web.light import Light
from node.web.peers import Peers

ALICE = bytes([1]) * 32
ID = bytes([0xAB]) * 32
BIG = 2**63 - 1  # grains that a JavaScript number would round

STATUS = answers.Status(
    chain_id=ID,
    profile="devnet",
    name="n0",
    roles=("validator",),
    node_account=ALICE,
    height=7,
    block_id=ID,
    time_ms=1,
    lag_blocks=0,
    peers=3,
    validators=4,
    signing=True,
    last_signed_height=7,
    why_silent="",
    damage="",
    pool_transactions=0,
    pool_bundles=0,
    kept_bundles=0,
    engine="none",
    models=(),
    supply=BIG,
    app_version=1,
    build="0.1.0",
    ready=True,
    checks={"storage": True},
)
RECEIPT = answers.InferenceReceipt(
    receipt=ID,
    provider=ALICE,
    model="contracts",
    version=1,
    fee=BIG,
    tokens_in=3,
    tokens_out=2,
    status="complete",
    body=b"\1\2",
    signature=b"\3",
    checks={"fee": True},
)
EARNED = answers.Earnings(
    account=ALICE,
    height=7,
    matured=BIG,
    maturing=1,
    since_height=1,
    complete=True,
    by=("model",),
    items=(answers.Earning("", 0, "", "contracts", "", 2, BIG, 1),),
)

PARAMETERS = {
    name: values if isinstance(values, tuple) else (values,)
    for name, values in devnet_parameters().items()
}

Row = TypeVar("Row", bound=Any)  # an answer with a number
Given = ParamSpec("Given")
Told = TypeVar("Told")


def later(look: Callable[Given, Told]) -> Callable[Given, Awaitable[Told]]:
    """A look at the table as a read of the ledger: awaited."""

    async def looked(*given: Given.args, **named: Given.kwargs) -> Told:
        await trio.lowlevel.checkpoint()
        return look(*given, **named)

    return looked


def page(rows: tuple[Row, ...], after: int, limit: int) -> tuple[Row, ...]:
    """As the routes promise: numbers above `after`, ascending."""
    return tuple(row for row in rows if row.number > after)[:limit]


DISCLOSURE = Disclosure(b"\1", b"\2" * 32, b"\3" * 32, (1, 2, 3), ((4,), ()), b"\5" * 4, b"\6")
AUDITED = answers.SketchAudit(
    ID, "contracts", 1, "pass", "", 999_900, 10**6, 3, 120, "fp32", 995_000, 50, 1_500
)
CHECKED = answers.ShareCheck(ID, "contracts", 1, 3, "true", "", 120, 5, 3, 16)


@dataclass
class Behind:
    """What the routes ask of; a test changes a part and looks at what was asked."""

    checks: dict[str, bool] = field(default_factory=lambda: {"storage": True})
    stopped: bool = False
    ready: bool = True
    accounts: set[bytes] = field(default_factory=lambda: {ALICE})
    keys: dict[bytes, bytes] = field(default_factory=dict)  # of accounts that rotated theirs
    next_nonce: int = 3
    channel: answers.ChannelAnswer | None = None
    provider: answers.ProviderAnswer | None = None
    settled_code: int = 0
    earned: answers.Earnings | None = None
    asked: list[Any] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)
    pieces: tuple[str, ...] = ("two ", "words")
    refuse_at: int | None = None  # before this piece `infer` raises
    refusal: Exception = field(default_factory=lambda: Invalid("payer.no_provider", tried=2))
    stall: bool = False
    drain: trio.Event = field(default_factory=trio.Event)
    unsettled: int = 0  # of the channel
    in_flight: int = 0
    goods_refusal: Invalid | None = None
    checked: answers.ShareCheck = CHECKED
    audited: answers.SketchAudit = AUDITED
    disclosed: Disclosure | None = DISCLOSURE
    datanets: tuple[answers.DatanetAnswer, ...] = ()
    contributions: tuple[answers.ContributionAnswer, ...] = ()  # of any Datanet
    looked_at_max: int = 100
    snapshots: tuple[answers.SnapshotAnswer, ...] = ()
    models: tuple[answers.ModelAnswer, ...] = ()
    receipt: answers.ReceiptAnswer | None = None

    async def infer(
        self, order: Order, tell: Callable[[str], Awaitable[None]]
    ) -> answers.InferenceReceipt:
        self.asked.append(order)
        try:
            for i, piece in enumerate(self.pieces):
                if i == self.refuse_at:
                    raise self.refusal
                await tell(piece)
            if self.stall:
                await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return RECEIPT

    async def audit(self, receipt: bytes, told: Disclosure) -> answers.SketchAudit | None:
        self.asked.append((receipt, told))
        return self.audited if receipt == ID else None

    async def submit(self, raw: bytes) -> bytes:
        self.asked.append(raw)
        if raw == b"bad":
            raise Invalid("tx.nonce", number=7)
        return ID

    def stop(self) -> None:
        self.stopped = True

    def find_account(self, account: bytes) -> answers.AccountAnswer | None:
        if account not in self.accounts:
            return None
        key = self.keys.get(account, account)
        return answers.AccountAnswer(account, BIG, 3, self.next_nonce, 0, key)

    def find_channel(self, channel: bytes) -> answers.ChannelAnswer | None:
        return self.channel if self.channel and self.channel.channel == channel else None

    def list_channels(self, account: bytes) -> answers.ChannelList:
        mine = self.channel and account in (self.channel.payer, self.channel.provider)
        return answers.ChannelList((self.channel,) if self.channel and mine else (), 0)

    def find_provider(self, account: bytes) -> answers.ProviderAnswer | None:
        return self.provider and replace(self.provider, provider=account)

    def find_transaction(self, tx_id: bytes) -> answers.TransactionAnswer | None:
        if tx_id != ID:
            return None
        reason = code_name(self.settled_code) if self.settled_code else ""
        return answers.TransactionAnswer(
            ID, "settled", 7, self.settled_code, reason, ALICE, "Transfer", 3, 1
        )

    def find_earnings(self, account: bytes, query: EarningsQuery) -> answers.Earnings | None:
        self.asked.append(query)
        return None if self.earned is None else replace(self.earned, account=account)

    def find_block(self, height: int) -> answers.BlockAnswer | None:
        if height == 5:
            raise RuntimeError("a secret of ours")
        if height > 7:
            return None
        accused = answers.Accusation(ID, "double_vote", 1, (ALICE,))
        return answers.BlockAnswer(
            height, ID, ID, 1, ALICE, ID, BIG, (ID,), (), (ALICE,), (), (accused,)
        )

    def list_models(self, after: int, limit: int) -> tuple[answers.ModelAnswer, ...]:
        self.asked.append((after, limit))
        return page(self.models, after, limit)

    def list_contributions(self, _: int, after: int, limit: int) -> answers.ContributionPage:
        """Looks at `looked_at_max` rows for a page, as if these were those of one Datanet."""
        told = page(self.contributions, after, min(limit, self.looked_at_max))
        ends = not told or told[-1] == self.contributions[-1]
        return answers.ContributionPage(told, 0 if ends else told[-1].number)

    async def find_shares(self, receipt: bytes) -> answers.Shares | None:
        if receipt != ID:
            return None
        row = answers.PaidRecord(
            4, ALICE, "contracts", 2, 10_000, 9_000, 1_000, 0, 25_000, "Which … thirty days."
        )
        return answers.Shares(ID, "contracts", 1, 120, 40, 100, (row,), 0)

    async def check_shares(self, receipt: bytes) -> answers.ShareCheck | None:
        return self.checked if receipt == ID else None

    def find_light_block(self, height: int) -> answers.LightBlockAnswer | None:
        return answers.LightBlockAnswer(height or 7, ID, 1, b"\1") if height <= 7 else None

    def prove_receipt(self, receipt: bytes, trusted: int | None) -> bytes | None:
        self.asked.append(trusted)
        return b"\0proof" if receipt == ID else None

    def add_peer(self, address: str) -> str:
        if not address.startswith("/ip4/"):
            raise Invalid("peers.bad_address", why="no address")
        self.asked.append(address)
        return "12D5"

    def prove_state(self, key: bytes, height: int | None) -> bytes | None:
        self.asked.append((key, height))
        if height == 1:
            raise Invalid("ledger.pruned", height=1)
        if height == 2:
            raise Invalid("ledger.record_changed", height=2)
        return b"\0proof" if key == tables.CONTRIBUTION.flat_key((7,)) else None

    async def store_goods(self, kind: int, identity: bytes, folder: Path) -> None:
        if self.goods_refusal is not None:
            raise self.goods_refusal
        self.asked.append((kind, identity, folder))

    async def release(self, channel: bytes) -> answers.ReleaseAnswer:
        if self.channel is None or self.channel.channel != channel:
            raise Invalid("channel.not_found")
        self.asked.append(("release", channel))
        return answers.ReleaseAnswer(channel, self.channel.paid, self.unsettled, self.in_flight)

    async def held_models(self) -> answers.HeldModels:
        held = answers.HeldModel("contracts@1", ID, "slot", 4_096, True, 3, BIG, BIG)
        return answers.HeldModels((held,), ("contrats",))

    def backend(self) -> Backend:
        ledger = Ledger(
            find_account=later(self.find_account),
            find_channel=later(self.find_channel),
            list_channels=later(self.list_channels),
            find_provider=later(self.find_provider),
            find_earnings=later(self.find_earnings),
            find_block=later(self.find_block),
            latest_height=lambda: 7,
            find_transaction=later(self.find_transaction),
            find_receipt=later(lambda receipt: self.receipt),
            find_shares=self.find_shares,
            check_shares=self.check_shares,
            prove_receipt=later(lambda receipt: b"\0proof" if receipt == ID else None),
            prove_transaction=later(lambda tx_id: b"\0proof" if tx_id == ID else None),
            prove_state=later(self.prove_state),
            list_models=later(self.list_models),
            list_datanets=later(lambda after, limit: page(self.datanets, after, limit)),
            list_contributions=later(self.list_contributions),
            list_snapshots=later(lambda after, limit: page(self.snapshots, after, limit)),
            list_validators=later(
                lambda: (answers.ValidatorAnswer(ALICE, 10, True, False, "active", 0, BIG),)
            ),
            get_params=later(lambda: answers.Params(7, ID, 1, 100, PARAMETERS)),
            submit=self.submit,
        )
        light = Light(
            find_block=self.find_light_block,
            prove_receipt=self.prove_receipt,
            prove_account=lambda account: None,
        )
        return Backend(
            status=lambda: replace(STATUS, ready=self.ready),
            checks=lambda: self.checks,
            peers=Peers(
                connected=lambda: (answers.Peer("12D3", "", "in", 4, 7, 0, True, False, "x"),),
                banned=lambda: (answers.Ban("12D4", 60),),
                add=self.add_peer,
                ban=lambda peer_id, seconds: self.asked.append((peer_id, seconds)),
                unban=lambda peer_id: peer_id == "12D4",
            ),
            infer=self.infer,
            stop=self.stop,
            models=self.held_models,
            store_goods=self.store_goods,
            release=self.release,
            disclose=lambda receipt: self.disclosed if receipt == ID else None,
            audit=self.audit,
            light=light,
            ledger=ledger,
        )


@asynccontextmanager
async def served(behind: Behind, folder: Path) -> AsyncIterator[Path]:
    """The socket of a running server, stopped at the end."""
    path = folder / "olnode.sock"
    async with trio.open_nursery() as nursery:

        async def serve(task_status: Any) -> None:
            await serve_socket(
                make_app(behind.backend()),
                path,
                wait_for_stop=behind.drain.wait,
                drain_s=1,
                task_status=task_status,
            )

        await nursery.start(serve)
        try:
            yield path
        finally:
            behind.drain.set()
