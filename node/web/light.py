"""Routes for light clients over HTTP: a checkpoint to compare, headers with their sets, proofs.

Why a checkpoint route though nobody should believe it: people compare it between operators before
they type it after `--trust`. All the rest proves itself.
What it does not know: storage, and whom the reader trusts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.primitives.errors import Invalid
from node.web import answers
from node.web.ledger import LIST_MAX, account_in_path, hash_in_path, page, proof, shown
from node.web.requests import check_parameters, number_in, route


@dataclass(frozen=True, slots=True)
class Light:
    """What the routes read. A `find_` gives None for a height that is not held (0: the newest).

    `prove_receipt(receipt, trusted)` links its file through the history of block `trusted`, or by
    certificates where that is None; None when there is no such receipt or no such way.
    """

    find_block: Callable[[int], answers.LightBlockAnswer | None]
    prove_receipt: Callable[[bytes, int | None], bytes | None]
    prove_account: Callable[[bytes], bytes | None]


def routes(light: Light) -> list[Route]:
    """The routes under /light."""

    async def checkpoint(request: Request) -> Response:
        check_parameters(request)
        found = light.find_block(0)
        told = None if found is None else answers.Checkpoint(found.height, found.block_id)
        return shown(told, "block")

    async def headers(request: Request) -> Response:
        check_parameters(request, "from", "to")
        first, last = (number_in(request, name) for name in ("from", "to"))
        if not 1 <= first <= last < first + LIST_MAX:
            raise Invalid("request.bad_parameter", param="to", limit_max=LIST_MAX)
        found = (light.find_block(height) for height in range(first, last + 1))
        return page("headers", tuple(block for block in found if block is not None))

    async def receipt_proof(request: Request) -> Response:
        check_parameters(request, "trusted")
        asked = "trusted" in request.query_params
        trusted = number_in(request, "trusted") if asked else None
        return proof(request, light.prove_receipt(hash_in_path(request), trusted))

    async def account_proof(request: Request) -> Response:
        check_parameters(request)
        return proof(request, light.prove_account(account_in_path(request)))

    return [
        route("GET", "/light/checkpoint", checkpoint),
        route("GET", "/light/headers", headers),
        route("GET", "/light/receipts/{id}/proof", receipt_proof),
        route("GET", "/light/accounts/{account}/proof", account_proof),
    ]
