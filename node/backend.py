"""What the HTTP face may ask of this node, put together from its parts.

What this file does not know: routes, and how any part does what it is asked.
"""

from collections.abc import Awaitable, Callable, Container
from pathlib import Path
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.holdings import check_identity
from node.ledger import tables
from node.ledger.wire.receipts import COMPLETE, receipt_id
from node.peering.blobstore import BlobStore
from node.peering.relay import Relay
from node.purse import Purse, Question
from node.reasons import Reasons
from node.sharecheck import ShareChecker
from node.shop import Shop
from node.sketchaudit import SketchAuditor
from node.storage.chain import Chain
from node.telling import Telling
from node.wallet.disclosure import Disclosure
from node.web import answers
from node.web.app import Backend, Order
from node.web.peers import Peers
from node.web.reading import Reading, make_ledger, make_light

CLOSED_SHOP_MEND: Final = (
    'start with roles = ["provider"] in config.toml until all that was served has settled'
)


def make_backend(
    *,
    chain: Chain,
    peers: Peers,
    telling: Telling,
    relay: Relay,
    reasons: Reasons,
    checker: ShareChecker,
    auditor: SketchAuditor,
    store: BlobStore,
    shop: Shop | None,
    purse: Purse | None,
    own_providers: Container[bytes],
    own_validator: bytes | None,
    next_nonce: Callable[[bytes], int],
    stop: Callable[[], None],
) -> Backend:
    """The daemon's Backend; `shop` and `purse` are None without those roles.

    `own_providers`: the accounts that this home may hold a provider's receipts of.
    """
    reading = Reading(
        take_view=chain.view,
        own_validator=own_validator,
        find_pending=telling.find_pending,
        next_nonce=next_nonce,
        count_providers=telling.count_providers,
    )

    async def release(channel: bytes) -> answers.ReleaseAnswer:
        if shop is not None:
            return answers.ReleaseAnswer(channel, *await shop.release(channel))
        record = chain.state().find(tables.CHANNEL, channel)
        if record is None:
            raise Invalid("channel.not_found", channel=channel)
        if record.provider in own_providers:  # its book of receipts is not open
            raise Invalid("channel.role_is_off", channel=channel, mend=CLOSED_SHOP_MEND)
        return answers.ReleaseAnswer(channel, record.paid, 0, 0)  # nothing is served here

    async def store_goods(kind: int, identity: bytes, folder: Path) -> None:
        if not folder.is_absolute() or not await trio.Path(folder).is_dir():
            raise Invalid("goods.folder", folder=str(folder)[:200])
        await trio.to_thread.run_sync(check_identity, kind, identity, folder)
        await trio.to_thread.run_sync(store.add_folder, kind, identity, folder)

    async def infer(
        order: Order, tell: Callable[[str], Awaitable[None]]
    ) -> answers.InferenceReceipt:
        if purse is None:
            raise Invalid("payer.no_wallet", mend='roles = ["payer"] in config.toml')
        return await _ask(purse, order, tell)

    def disclose(receipt: bytes) -> Disclosure | None:
        return None if purse is None else purse.find_disclosure(receipt)

    return Backend(
        status=telling.status,
        checks=telling.checks,
        peers=peers,
        infer=infer,
        stop=stop,
        models=telling.models,
        store_goods=store_goods,
        release=release,
        disclose=disclose,
        audit=auditor.audit,
        ledger=make_ledger(
            reading,
            find_shares=reasons.find_shares,
            check_shares=checker.check,
            submit=relay.submit_transaction,
        ),
        light=make_light(reading),
    )


async def _ask(
    purse: Purse, order: Order, tell: Callable[[str], Awaitable[None]]
) -> answers.InferenceReceipt:
    question = Question(
        order.model,
        order.prompt,
        order.max_tokens,
        order.temperature_milli,
        order.top_p_milli,
        order.top_k,
        order.seed,
        order.max_fee,
        order.provider,
    )
    answer = await purse.ask(question, tell)
    receipt = answer.receipt
    return answers.InferenceReceipt(
        receipt=receipt_id(answer.receipt_raw),
        provider=answer.provider,
        model=order.model.partition("@")[0],
        version=receipt.model_version,
        fee=receipt.fee,
        tokens_in=receipt.tokens_in,
        tokens_out=receipt.tokens_out,
        status="complete" if receipt.status == COMPLETE else "partial",
        body=answer.receipt_raw,
        signature=answer.signature,
        checks={"fee": True, "counts": True, "answer_root": True},
    )
