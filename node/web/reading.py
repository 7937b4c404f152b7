"""The ledger as answers: reads of one view of the chain, for the routes under /ledger.

Why over a view: every answer is of one block, whatever is written meanwhile.
What it does not know: HTTP, the pool, who offers: those come as callables.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from consensus.primitives.encoding import INT_MAX
from consensus.skipping import encode_light_block
from node.ledger import tables
from node.ledger.amounts import BPS, split
from node.ledger.rules.accounts import BASE_PRICE_NAME, current_key
from node.ledger.rules.channels import served_channels
from node.ledger.rules.models import ends_ms, prices_at
from node.ledger.rules.registry import CONTRIBUTIONS_NAME, LICENCES, terms_of
from node.ledger.rules.staking import bonded, is_active_provider
from node.ledger.state import State
from node.ledger.wire.bundles import decode_header
from node.ledger.wire.codes import code_name
from node.ledger.wire.payouts import PayoutLeaf, decode_payout
from node.ledger.wire.receipts import (
    COMPLETE,
    NO_CONTRIBUTION,
    decode_credits,
    decode_receipt,
)
from node.ledger.wire.transactions import decode_transaction
from node.storage.views import View
from node.web import answers
from node.web.channels import find_channel, list_channels
from node.web.earnings import find_earnings
from node.web.ledger import Ledger
from node.web.light import Light
from node.web.naming import (
    KIND_NAMES,
    contribution_of,
    datanet_name,
    datanet_of,
    model_name,
    owner_of,
)
from node.web.proving import receipt_file, state_file, transaction_file
from node.web.standing import accusation, list_validators

READS_AT_ONCE_MAX: Final = 2
LOOKED_AT_MAX: Final = 5_000  # contributions, for one page of those of one Datanet

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer is read from; `take_view` gives the chain as of its newest block.

    All are called in the loop.
    """

    take_view: Callable[[], View]
    own_validator: bytes | None
    find_pending: Callable[[bytes], bytes | None]  # a transaction in the pool, by id
    next_nonce: Callable[[bytes], int]  # of an account, with the pool counted in
    count_providers: Callable[[], Mapping[tuple[int, int], int]]  # offers by (model, version)


def make_ledger(
    reading: Reading,
    *,
    find_shares: Callable[[bytes], Awaitable[answers.Shares | None]],
    check_shares: Callable[[bytes], Awaitable[answers.ShareCheck | None]],
    submit: Callable[[bytes], Awaitable[bytes]],
) -> Ledger:
    """The routes' reads over `reading`, each in a thread and over one view.

    At most READS_AT_ONCE_MAX run, the others wait: they share the interpreter's lock with the loop
    that votes, and a flood of requests must not take the threads of everything else. What is not
    the chain's (pool, offers) is asked in the loop, just before the view is taken.
    """
    limiter = trio.CapacityLimiter(READS_AT_ONCE_MAX)

    def read(look: Callable[[View], R]) -> Awaitable[R]:
        return trio.to_thread.run_sync(look, reading.take_view(), limiter=limiter)

    def read_account(account: bytes) -> Awaitable[answers.AccountAnswer | None]:
        next_nonce = reading.next_nonce(account)
        return read(lambda view: find_account(view, account, next_nonce))

    def read_transaction(tx_id: bytes) -> Awaitable[answers.TransactionAnswer | None]:
        pending = reading.find_pending(tx_id)
        return read(lambda view: find_transaction(view, tx_id, pending))

    def read_models(after: int, limit: int) -> Awaitable[tuple[answers.ModelAnswer, ...]]:
        providers = reading.count_providers()
        return read(lambda view: list_models(view, after, limit, providers))

    return Ledger(
        find_account=read_account,
        find_channel=lambda channel: read(lambda view: find_channel(view, channel)),
        list_channels=lambda account: read(lambda view: list_channels(view, account)),
        find_provider=lambda account: read(lambda view: find_provider(view, account)),
        find_earnings=lambda account, query: read(lambda view: find_earnings(view, account, query)),
        find_block=lambda height: read(lambda view: find_block(view, height)),
        latest_height=lambda: reading.take_view().tip.height,
        find_transaction=read_transaction,
        find_receipt=lambda receipt: read(lambda view: find_receipt(view, receipt)),
        find_shares=find_shares,
        check_shares=check_shares,
        prove_receipt=lambda receipt: read(lambda view: receipt_file(view, receipt)),
        prove_transaction=lambda tx_id: read(lambda view: transaction_file(view, tx_id)),
        prove_state=lambda key, height: read(lambda view: state_file(view, key, height)),
        list_models=read_models,
        list_datanets=lambda after, limit: read(lambda view: list_datanets(view, after, limit)),
        list_contributions=lambda datanet, after, limit: read(
            lambda view: list_contributions(view, datanet, after, limit)
        ),
        list_snapshots=lambda after, limit: read(lambda view: list_snapshots(view, after, limit)),
        list_validators=lambda: read(lambda view: list_validators(view, reading.own_validator)),
        get_params=lambda: read(get_params),
        submit=submit,
    )


def make_light(reading: Reading) -> Light:
    """The reads of light clients over `reading`."""
    view = reading.take_view
    return Light(
        find_block=lambda height: find_light_block(view(), height),
        prove_receipt=lambda receipt, trusted: receipt_file(view(), receipt, trusted),
        prove_account=lambda account: state_file(view(), tables.ACCOUNT.flat_key((account,))),
    )


def find_light_block(view: View, height: int) -> answers.LightBlockAnswer | None:
    """The light block of a height, 0: the newest."""
    block = view.light_block(height or view.height)
    if block is None:
        return None
    raw = encode_light_block(block)
    return answers.LightBlockAnswer(block.height, block.block_id, block.header.time_ms, raw)


# --- accounts


def find_account(view: View, account: bytes, next_nonce: int) -> answers.AccountAnswer | None:
    """Balance, nonces and what waits; None for an account that the ledger has never seen.

    Costs a pass over what is maturing: one entry a payee and bucket of the challenge window.
    """
    state = view.state()
    found = state.find(tables.ACCOUNT, account)
    maturing = sum(_maturing_of(state, account).values())
    if found is None and not maturing:
        return None
    found = found or tables.Account()
    key = found.key or account
    return answers.AccountAnswer(account, found.balance, found.nonce, next_nonce, maturing, key)


def find_provider(view: View, account: bytes) -> answers.ProviderAnswer | None:
    """A registered provider."""
    state = view.state()
    found = state.find(tables.PROVIDER, account)
    if found is None:
        return None
    conduct = state.find(tables.CONDUCT, tables.ROLE_PROVIDER, account) or tables.Conduct()
    return answers.ProviderAnswer(
        provider=account,
        key=current_key(state, account),
        peer_key=found.peer_key,
        reward_account=found.reward_account,
        status=_provider_status(found, conduct),
        takes_channels=is_active_provider(state, account),
        last_bundle=found.bundle_seq,
        bonded=bonded(state, tables.ROLE_PROVIDER, account),
        channels=served_channels(state, account),
        jailed_until_ms=conduct.jailed_until_ms,
    )


def _provider_status(provider: tables.Provider, conduct: tables.Conduct) -> str:
    if conduct.jailed_until_ms:
        return "jailed"
    return "active" if provider.status == tables.PROVIDER_ACTIVE else "paused"


def _maturing_of(state: State, account: bytes) -> dict[tuple[int, bytes], int]:
    """(kind, payee) → grains that wait for this account or its contributions."""
    waiting: dict[tuple[int, bytes], int] = {}
    for (_, kind, payee), record in state.scan(tables.MATURING):
        if owner_of(state, kind[0], payee) == account:
            key = kind[0], payee
            waiting[key] = waiting.get(key, 0) + record.amount
    return waiting


# --- blocks and what they carry


def find_block(view: View, height: int) -> answers.BlockAnswer | None:
    """A block with its signers, transactions, bundles, payouts and evidence."""
    header = view.header(height) if 1 <= height <= view.tip.height else None
    payload, certificate = view.payload(height), view.certificate(height)
    if header is None or payload is None or certificate is None:
        return None
    validators = view.validators(height)
    members = () if validators is None else validators.members
    state = view.state()
    return answers.BlockAnswer(
        height=height,
        block_id=header.block_id(),
        parent_id=header.parent_id,
        time_ms=header.time_ms,
        proposer=header.proposer,
        state_root=header.state_root,
        supply=header.supply,
        transactions=tuple(decode_transaction(raw).tx_id for raw in payload.transactions),
        bundles=payload.bundles,
        signers=tuple(members[i].key for i in certificate.signers() if i < len(members)),
        payouts=tuple(_payout(state, decode_payout(raw)) for raw in view.payouts(height)),
        evidence=tuple(accusation(view, raw) for raw in payload.evidence),
    )


def _payout(state: State, leaf: PayoutLeaf) -> answers.Payout:
    return answers.Payout(
        kind=KIND_NAMES.get(leaf.kind, "total"),
        account=owner_of(state, leaf.kind, leaf.payee),
        contribution=contribution_of(leaf.kind, leaf.payee),
        model=model_name(state, leaf.model),
        version=leaf.version,
        amount=leaf.amount,
        matures_ms=leaf.matures_ms,
    )


def find_transaction(
    view: View, tx_id: bytes, pending: bytes | None
) -> answers.TransactionAnswer | None:
    """A transaction in the chain; else `pending`, what the pool had under that id."""
    found = view.find_transaction(tx_id)
    raw = pending if found is None else found.raw
    if raw is None:
        return None
    tx = decode_transaction(raw)
    return answers.TransactionAnswer(
        transaction=tx_id,
        state="pending" if found is None else "settled",
        height=0 if found is None else found.height,
        code=0 if found is None else found.code,
        reason="" if found is None or not found.code else code_name(found.code),
        sender=tx.sender,
        type_name=tx.type_name,
        nonce=tx.nonce,
        max_fee=tx.max_fee,
    )


def find_receipt(view: View, receipt_id: bytes) -> answers.ReceiptAnswer | None:
    """A settled receipt, its fee by role and its credits by contributor."""
    found = view.find_receipt(receipt_id)
    bundle = None if found is None else view.find_bundle(found.bundle_hash)
    if found is None or bundle is None:
        return None
    receipt, state = decode_receipt(found.receipt), view.state()
    channel = state.find(tables.CHANNEL, receipt.channel)
    parts = dict(zip(KIND_NAMES, _split_of(state, receipt.fee), strict=True))
    credits = decode_credits(found.credits) or ((NO_CONTRIBUTION, BPS),)
    amounts = dict(zip(credits, split(parts[tables.KIND_DATA], credits), strict=True))
    to_fund_bps = dict(credits).get(NO_CONTRIBUTION, 0)
    return answers.ReceiptAnswer(
        receipt=receipt_id,
        height=found.height,
        bundle=found.bundle_hash,
        provider=decode_header(bundle.bundle.header).provider,
        payer=None if channel is None else channel.payer,
        channel=receipt.channel,
        lane=receipt.lane,
        seq=receipt.seq,
        order=receipt.order_hash,
        model=model_name(state, receipt.model),
        version=receipt.model_version,
        tokens_in=receipt.tokens_in,
        tokens_out=receipt.tokens_out,
        fee=receipt.fee,
        started_ms=receipt.started_ms,
        finished_ms=receipt.finished_ms,
        status="complete" if receipt.status == COMPLETE else "partial",
        split={KIND_NAMES[kind]: amount for kind, amount in parts.items()},
        credits=_credits(state, amounts),
        fund_share_bps=to_fund_bps,
        fund_amount=amounts.get((NO_CONTRIBUTION, to_fund_bps), 0),
    )


def _split_of(state: State, fee: int) -> list[int]:
    return split(fee, list(zip(KIND_NAMES, state.parameter_values("split_bps"), strict=True)))


def _credits(state: State, amounts: Mapping[tuple[int, int], int]) -> tuple[answers.Credit, ...]:
    return tuple(
        answers.Credit(
            contribution=number,
            contributor=state.get(tables.CONTRIBUTION, number).contributor,
            datanet=datanet_of(state, number),
            share_bps=share_bps,
            amount=amount,
        )
        for (number, share_bps), amount in amounts.items()
        if number != NO_CONTRIBUTION
    )


# --- lists


def list_models(
    view: View, after: int, limit: int, providers: Mapping[tuple[int, int], int]
) -> tuple[answers.ModelAnswer, ...]:
    """Models with their current version, by number; `providers` by (model, version)."""
    state = view.state()
    numbers = range(after + 1, after + 1 + limit)
    found = ((number, state.find(tables.MODEL, number)) for number in numbers)
    return tuple(
        _model(state, number, model, providers.get((number, model.current), 0), view.tip.time_ms)
        for number, model in found
        if model is not None
    )


def _model(
    state: State, number: int, model: tables.Model, providers: int, now_ms: int
) -> answers.ModelAnswer:
    version = state.find(tables.VERSION, number, model.current)
    price = state.find(tables.PRICE, number, model.current)
    snapshot = state.find(tables.SNAPSHOT, version.snapshot) if version else None
    end_ms = ends_ms(state, (number, model.current))
    prices = prices_at(price, now_ms) if price else (0, 0, 0)
    fund = state.find(tables.FUND, number)
    return answers.ModelAnswer(
        number=number,
        name=model.name.decode("ascii"),
        version=model.current,
        creator=model.creator,
        base=model.base,
        adapter=version.adapter if version else b"",
        datanet=datanet_name(state, snapshot.datanet) if snapshot else "",
        records=snapshot.records if snapshot else 0,
        price_in=prices[0],
        price_out=prices[1],
        price_call=prices[2],
        fund=fund.balance if fund else 0,
        providers=providers,
        status=MODEL_STATUS[model.status],
        ends_ms=0 if end_ms == INT_MAX else end_ms,
    )


def list_datanets(view: View, after: int, limit: int) -> tuple[answers.DatanetAnswer, ...]:
    """Datanets with counts of their contributions, by number.

    Costs a pass over all contributions: the ledger keeps no counts of them by Datanet.
    """
    state = view.state()
    by_datanet: dict[int, list[tables.Contribution]] = {}
    for _, contribution in state.scan(tables.CONTRIBUTION):
        by_datanet.setdefault(contribution.datanet, []).append(contribution)
    told = []
    for number in range(after + 1, after + 1 + limit):
        found = state.find(tables.DATANET, number)
        if found is None:
            continue
        mine = by_datanet.get(number, [])
        accepted = [one for one in mine if one.status == tables.ACCEPTED]
        terms = terms_of(found)
        told.append(
            answers.DatanetAnswer(
                number=number,
                name=found.name.decode("ascii"),
                steward=found.steward,
                contributions=len(mine),
                accepted=len(accepted),
                records=sum(one.records for one in accepted),
                contributors=len({one.contributor for one in accepted}),
                mode=DATANET_MODES[terms.mode],
                quorum=terms.quorum,
                licences=tuple(LICENCES[code] for code in terms.licences),
                stake_per_record=terms.stake_per_record,
                review_ms=terms.review_ms,
            )
        )
    return tuple(told)


MODEL_STATUS: Final = {
    tables.MODEL_ACTIVE: "active",
    tables.MODEL_DORMANT: "dormant",
    tables.MODEL_RETIRING: "retiring",
    tables.MODEL_RETIRED: "retired",
}
DATANET_MODES: Final = ("open", "permissioned")
CONTRIBUTION_STATUS: Final = ("pending", "accepted", "returned", "rejected", "slashed", "withdrawn")


def list_contributions(
    view: View, datanet: int, after: int, limit: int
) -> answers.ContributionPage:
    """Contributions of one Datanet with numbers above `after`.

    They stand among those of all Datanets: of these at most LOOKED_AT_MAX are looked at for a page.
    """
    state = view.state()
    newest = state.counter(CONTRIBUTIONS_NAME)
    told: list[answers.ContributionAnswer] = []
    number, stop = after, min(newest, after + LOOKED_AT_MAX)
    while number < stop and len(told) < limit:
        number += 1
        found = state.find(tables.CONTRIBUTION, number)
        if found is None or found.datanet != datanet:
            continue
        status = CONTRIBUTION_STATUS[found.status]
        told.append(
            answers.ContributionAnswer(
                number, found.contributor, found.root, found.records, status, found.earned
            )
        )
    return answers.ContributionPage(tuple(told), number if number < newest else 0)


def list_snapshots(view: View, after: int, limit: int) -> tuple[answers.SnapshotAnswer, ...]:
    """Snapshots of all Datanets, by number."""
    state = view.state()
    numbers = range(after + 1, after + 1 + limit)
    found = ((number, state.find(tables.SNAPSHOT, number)) for number in numbers)
    return tuple(
        answers.SnapshotAnswer(
            number=number,
            datanet=datanet_name(state, snapshot.datanet),
            root=snapshot.root,
            last_contribution=snapshot.last_contribution,
            records=snapshot.records,
            made_ms=snapshot.made_ms,
        )
        for number, snapshot in found
        if snapshot is not None
    )


def get_params(view: View) -> answers.Params:
    """Every parameter by name: one number, or the seven of a split."""
    header, state = view.tip.header, view.state()
    rows = state.scan(tables.PARAMETER)
    return answers.Params(
        height=view.tip.height,
        chain_id=view.tip.block_id if header is None else header.chain_id,
        app_version=0 if header is None else header.app_version,
        base_price=state.counter(BASE_PRICE_NAME),
        values={name.decode("ascii"): record.values for (name,), record in rows},
    )
