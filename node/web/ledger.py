"""Routes that read the ledger and take transactions: each calls one function below and shows it.

Why callables: the daemon hands over reads of its own chain, so this file decides nothing and a
test serves it from a table. They are awaited: a read may take long, and the loop also votes. Lists
are paged by number: `after` is the last number seen.
What it does not know: state, storage, who is asking.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.addresses import account_of
from node.web import answers
from node.web.requests import check_parameters, number_in, number_of, read_body, route

VERSION_MAX: Final = 2**32 - 1
LIST_MAX: Final = 100
LIST_DEFAULT: Final = 50
TRANSACTION_BYTES_MAX: Final = 65_536
PROOF_TYPE: Final = "application/vnd.olnode"


@dataclass(frozen=True, slots=True)
class EarningsQuery:
    """From which block on, by height and by time; `by` as in `earnings.GROUPS`, "" the finest."""

    since_height: int = 0
    since_ms: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the routes read; a `find_` gives None for what the ledger does not hold.

    `submit` takes the wire bytes of a signed transaction and returns its id once the pool has it;
    raises Invalid with page 30's word and `number`. `find_shares` may ask the receipt's provider,
    `check_shares` other peers too.
    `prove_*` return the bytes of a proof file, or None while nothing that a header commits to holds
    the subject; `prove_state(flat key, height or None)` raises as `state_file` does.
    `list_*(after, limit)` give
    numbers greater than `after`, ascending. Only `latest_height` is answered in the loop.
    """

    find_account: Callable[[bytes], Awaitable[answers.AccountAnswer | None]]
    find_channel: Callable[[bytes], Awaitable[answers.ChannelAnswer | None]]
    list_channels: Callable[[bytes], Awaitable[answers.ChannelList]]
    find_provider: Callable[[bytes], Awaitable[answers.ProviderAnswer | None]]
    find_earnings: Callable[[bytes, EarningsQuery], Awaitable[answers.Earnings | None]]
    find_block: Callable[[int], Awaitable[answers.BlockAnswer | None]]
    latest_height: Callable[[], int]
    find_transaction: Callable[[bytes], Awaitable[answers.TransactionAnswer | None]]
    find_receipt: Callable[[bytes], Awaitable[answers.ReceiptAnswer | None]]
    find_shares: Callable[[bytes], Awaitable[answers.Shares | None]]
    check_shares: Callable[[bytes], Awaitable[answers.ShareCheck | None]]
    prove_receipt: Callable[[bytes], Awaitable[bytes | None]]
    prove_transaction: Callable[[bytes], Awaitable[bytes | None]]
    prove_state: Callable[[bytes, int | None], Awaitable[bytes | None]]
    list_models: Callable[[int, int], Awaitable[tuple[answers.ModelAnswer, ...]]]
    list_datanets: Callable[[int, int], Awaitable[tuple[answers.DatanetAnswer, ...]]]
    list_contributions: Callable[[int, int, int], Awaitable[answers.ContributionPage]]
    list_snapshots: Callable[[int, int], Awaitable[tuple[answers.SnapshotAnswer, ...]]]
    list_validators: Callable[[], Awaitable[tuple[answers.ValidatorAnswer, ...]]]
    get_params: Callable[[], Awaitable[answers.Params]]
    submit: Callable[[bytes], Awaitable[bytes]]


def routes(ledger: Ledger) -> list[Route]:
    """The routes under /ledger."""
    return [*_read_routes(ledger), *_proof_routes(ledger)]


def _read_routes(ledger: Ledger) -> list[Route]:
    """What the ledger holds, and the way in for transactions."""

    async def account(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_account(account_in_path(request)), "account")

    async def channel(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_channel(hash_in_path(request)), "channel")

    async def channels(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.list_channels(account_in_path(request)), "account")

    async def provider(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_provider(account_in_path(request)), "provider")

    async def earnings(request: Request) -> Response:
        query = earnings_query(request)
        return shown(await ledger.find_earnings(account_in_path(request), query), "account")

    async def block(request: Request) -> Response:
        check_parameters(request)
        word = request.path_params["height"]
        height = ledger.latest_height() if word == "latest" else number_of(word, "height")
        return shown(await ledger.find_block(height), "block")

    async def transaction(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_transaction(hash_in_path(request)), "transaction")

    async def receipt(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_receipt(hash_in_path(request)), "receipt")

    async def receipt_shares(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.find_shares(hash_in_path(request)), "receipt")

    async def receipt_check(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.check_shares(hash_in_path(request)), "receipt")

    async def models(request: Request) -> Response:
        return page("models", await ledger.list_models(*paging(request)))

    async def datanets(request: Request) -> Response:
        return page("datanets", await ledger.list_datanets(*paging(request)))

    async def contributions(request: Request) -> Response:
        datanet = number_of(request.path_params["datanet"], "datanet")
        return shown(await ledger.list_contributions(datanet, *paging(request)), "datanet")

    async def snapshots(request: Request) -> Response:
        return page("snapshots", await ledger.list_snapshots(*paging(request)))

    async def validators(request: Request) -> Response:
        check_parameters(request)
        return page("validators", await ledger.list_validators())

    async def params(request: Request) -> Response:
        check_parameters(request)
        return shown(await ledger.get_params(), "params")

    async def submit(request: Request) -> Response:
        check_parameters(request)
        raw = await read_body(request, TRANSACTION_BYTES_MAX, "application/octet-stream")
        return JSONResponse({"transaction": (await ledger.submit(raw)).hex()}, 202)

    return [
        route("GET", "/ledger/accounts/{account}", account),
        route("GET", "/ledger/accounts/{account}/earnings", earnings),
        route("GET", "/ledger/accounts/{account}/channels", channels),
        route("GET", "/ledger/channels/{id}", channel),
        route("GET", "/ledger/providers/{account}", provider),
        route("GET", "/ledger/blocks/{height}", block),
        route("GET", "/ledger/transactions/{id}", transaction),
        route("POST", "/ledger/transactions", submit),
        route("GET", "/ledger/receipts/{id}", receipt),
        route("GET", "/ledger/receipts/{id}/shares", receipt_shares),
        route("GET", "/ledger/receipts/{id}/check", receipt_check),
        route("GET", "/ledger/models", models),
        route("GET", "/ledger/datanets", datanets),
        route("GET", "/ledger/datanets/{datanet}/contributions", contributions),
        route("GET", "/ledger/snapshots", snapshots),
        route("GET", "/ledger/validators", validators),
        route("GET", "/ledger/params", params),
    ]


def _proof_routes(ledger: Ledger) -> list[Route]:
    """Files that show it to whoever trusts no node."""

    async def state_proof(request: Request, key: bytes) -> Response:
        check_parameters(request, "height")
        asked = "height" in request.query_params
        height = number_in(request, "height") if asked else None
        return proof(request, await ledger.prove_state(key, height))

    async def account_proof(request: Request) -> Response:
        key = tables.ACCOUNT.flat_key((account_in_path(request),))
        return await state_proof(request, key)

    async def channel_proof(request: Request) -> Response:
        return await state_proof(request, tables.CHANNEL.flat_key((hash_in_path(request),)))

    async def version_proof(request: Request) -> Response:
        model = number_of(request.path_params["model"], "model")
        version = number_of(request.path_params["version"], "version", VERSION_MAX)
        return await state_proof(request, tables.VERSION.flat_key((model, version)))

    async def receipt_proof(request: Request) -> Response:
        check_parameters(request)
        return proof(request, await ledger.prove_receipt(hash_in_path(request)))

    async def contribution_proof(request: Request) -> Response:
        number = number_of(request.path_params["number"], "contribution")
        return await state_proof(request, tables.CONTRIBUTION.flat_key((number,)))

    async def transaction_proof(request: Request) -> Response:
        check_parameters(request)
        return proof(request, await ledger.prove_transaction(hash_in_path(request)))

    return [
        route("GET", "/ledger/accounts/{account}/proof", account_proof),
        route("GET", "/ledger/channels/{id}/proof", channel_proof),
        route("GET", "/ledger/transactions/{id}/proof", transaction_proof),
        route("GET", "/ledger/receipts/{id}/proof", receipt_proof),
        route("GET", "/ledger/models/{model}/versions/{version}/proof", version_proof),
        route("GET", "/ledger/contributions/{number}/proof", contribution_proof),
    ]


def shown(answer: Any | None, what: str) -> JSONResponse:
    """The answer as JSON; raises Invalid `<what>.not_found` for None."""
    if answer is None:
        raise Invalid(f"{what}.not_found")
    return JSONResponse(answers.as_json(answer))


def page(name: str, items: tuple[Any, ...]) -> JSONResponse:
    return JSONResponse({name: [answers.as_json(item) for item in items]})


def proof(request: Request, raw: bytes | None) -> Response:
    """The proof file: its bytes when asked for by type, else as hex in JSON."""
    if raw is None:
        raise Invalid("ledger.no_proof")
    if request.headers.get("accept") == PROOF_TYPE:
        return Response(raw, media_type=PROOF_TYPE)
    return JSONResponse({"proof": raw.hex()})


def account_in_path(request: Request) -> bytes:
    return account_of(request.path_params["account"])


def hash_in_path(request: Request) -> bytes:
    """The 32-byte id in the path; lower-case hex only, so one id has one address."""
    text = request.path_params["id"]
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise Invalid("request.bad_id")
    return bytes.fromhex(text)


def earnings_query(request: Request) -> EarningsQuery:
    """From which block on what an account earned is told, and by what it is grouped."""
    check_parameters(request, "since_height", "since_ms", "by")
    told = request.query_params
    return EarningsQuery(
        since_height=number_of(told.get("since_height", "0"), "since_height"),
        since_ms=number_of(told.get("since_ms", "0"), "since_ms"),
        by=told.get("by", ""),
    )


def paging(request: Request) -> tuple[int, int]:
    """(after, limit) of a list; limit 1..100."""
    check_parameters(request, "after", "limit")
    after = number_of(request.query_params.get("after", "0"), "after")
    limit = number_of(request.query_params.get("limit", str(LIST_DEFAULT)), "limit")
    if not 1 <= limit <= LIST_MAX:
        raise Invalid("request.bad_parameter", param="limit", limit_max=LIST_MAX)
    return after, limit
