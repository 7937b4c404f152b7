"""Routes about peers: who is connected, who is banned; the operator adds, bans and lets in again.

What it does not know: how peers are found, what they did.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consensus.primitives.errors import Invalid
from node.web import answers
from node.web.requests import check_parameters, read_struct, route

BODY_BYTES_MAX: Final = 1_024
BAN_SECONDS_MAX: Final = 30 * 86_400


class AddBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /peers."""

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class BanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /peers/{peer_id}/ban."""

    seconds: Annotated[int, msgspec.Meta(ge=1, le=BAN_SECONDS_MAX)]


@dataclass(frozen=True, slots=True)
class Peers:
    """What the routes ask for; peer ids as text. Each raises Invalid `peers.…` for a bad one.

    `add(address)` gives the peer id of an address that is dialled from now on; `unban` tells
    whether there was a ban.
    """

    connected: Callable[[], tuple[answers.Peer, ...]]
    banned: Callable[[], tuple[answers.Ban, ...]]
    add: Callable[[str], str]
    ban: Callable[[str, int], None]
    unban: Callable[[str], bool]


def routes(peers: Peers) -> list[Route]:
    """The routes under /peers."""

    async def shown(request: Request) -> Response:
        check_parameters(request)
        connected = [answers.as_json(peer) for peer in peers.connected()]
        return JSONResponse(
            {"peers": connected, "bans": [answers.as_json(ban) for ban in peers.banned()]}
        )

    async def add(request: Request) -> Response:
        check_parameters(request)
        body = await read_struct(request, AddBody, BODY_BYTES_MAX)
        return JSONResponse({"peer_id": peers.add(body.address)}, 202)

    async def ban(request: Request) -> Response:
        check_parameters(request)
        body = await read_struct(request, BanBody, BODY_BYTES_MAX)
        peers.ban(request.path_params["peer_id"], body.seconds)
        return await shown(request)

    async def unban(request: Request) -> Response:
        check_parameters(request)
        if not peers.unban(request.path_params["peer_id"]):
            raise Invalid("peers.not_found", peer_id=request.path_params["peer_id"])
        return await shown(request)

    return [
        route("GET", "/peers", shown),
        route("POST", "/peers", add),
        route("POST", "/peers/{peer_id}/ban", ban),
        route("POST", "/peers/{peer_id}/unban", unban),
    ]
