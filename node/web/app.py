"""The node's HTTP face on its own socket: status, questions, stop, and the ledger's routes.

Why a Unix socket: file rights are admin rights, and nothing outside the machine can reach it.
Only this file knows hypercorn. The daemon hands over a `Backend` of callables; a handler calls
one of them and decides nothing.
What it does not know: chain, pool, wallet, peers.
"""

import contextlib
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consensus.primitives.errors import Invalid
from node.ledger.addresses import account_of
from node.ledger.wire.exchange import unpack_ids
from node.ledger.wire.orders import pack_ids
from node.wallet.disclosure import Disclosure
from node.web import answers
from node.web.ledger import Ledger, hash_in_path, shown
from node.web.ledger import routes as ledger_routes
from node.web.light import Light
from node.web.light import routes as light_routes
from node.web.peers import Peers
from node.web.peers import routes as peers_routes
from node.web.requests import (
    check_parameters,
    not_found,
    number_of,
    read_body,
    read_struct,
    route,
    struct_of,
    wrong_method,
)
from node.web.streams import LineStream, Tell

GOODS_BYTES_MAX: Final = 8_192
QUESTION_BYTES_MAX: Final = 1_048_576
DISCLOSURE_BYTES_MAX: Final = 4_194_304  # 8 hex digits a token: as many as a question can ask for
CHOICES_MAX: Final = 255  # of one order: a u8
HEADER_TIMEOUT_S: Final = 5
CONNECTIONS_MAX: Final = 64  # one operator and their scripts


Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
HexText = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]*$")]  # by pairs: 75 bytes a character


class GoodsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /goods: a folder on this machine and what it is (page 70 §10)."""

    kind: Annotated[int, msgspec.Meta(ge=1, le=5)]
    identity: Id
    folder: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]


class DisclosureBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /receipts/{id}/audit: an `answers.DisclosureAnswer`, all of it in hex."""

    receipt: Id
    order: HexText
    payer_nonce: HexText
    provider_nonce: HexText
    prompt: HexText
    answers: Annotated[tuple[HexText, ...], msgspec.Meta(max_length=CHOICES_MAX)]
    sketch: HexText
    statement: HexText


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /infer; `max_fee` in grains, `provider` an account as text."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # name or name@version
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=262_144)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=32_768)] = 64
    temperature_milli: Annotated[int, msgspec.Meta(ge=0, le=2_000)] = 0
    top_p_milli: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1_000
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_024)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    max_fee: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")] | None = None
    provider: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A question as the wallet takes it; None where the payer's own config decides."""

    model: str
    prompt: str
    max_tokens: int
    temperature_milli: int
    top_p_milli: int
    top_k: int
    seed: int | None
    max_fee: int | None
    provider: bytes | None


@dataclass(frozen=True, slots=True)
class Backend:
    """Everything the HTTP face may ask of the daemon.

    `infer(order, tell)` awaits `tell(text)` for each piece of the answer, returns the receipt once
    it is checked, and raises Invalid before the first piece or midway; a cancel means that the
    caller has gone: the wallet pays for what was delivered. `stop` only asks for an orderly end.
    `store_goods(kind, identity, folder)` checks that a folder of this machine is what `identity`
    names, and serves its files to peers from then on; raises Invalid. `release(channel)` has this
    provider serve nothing more on a channel; raises Invalid for one that is not its own.
    `disclose(receipt)` is what opens an answer bought here, None where it is not kept (any more);
    `audit(receipt, disclosure)` makes its sketch again, None for a receipt that is not settled.
    """

    status: Callable[[], answers.Status]
    checks: Callable[[], Mapping[str, bool]]  # of readiness, by name
    peers: Peers
    infer: Callable[[Order, Callable[[str], Awaitable[None]]], Awaitable[answers.InferenceReceipt]]
    stop: Callable[[], None]
    models: Callable[[], Awaitable[answers.HeldModels]]
    store_goods: Callable[[int, bytes, Path], Awaitable[None]]
    release: Callable[[bytes], Awaitable[answers.ReleaseAnswer]]
    disclose: Callable[[bytes], Disclosure | None]
    audit: Callable[[bytes, Disclosure], Awaitable[answers.SketchAudit | None]]
    ledger: Ledger
    light: Light


def make_app(backend: Backend) -> Starlette:
    """The ASGI application over `backend`."""
    missing: Any = {404: not_found, 405: wrong_method}  # Starlette types its handlers too narrowly
    routes = [
        *_node_routes(backend),
        *peers_routes(backend.peers),
        *ledger_routes(backend.ledger),
        *light_routes(backend.light),
    ]
    return Starlette(routes=routes, exception_handlers=missing)


def _node_routes(backend: Backend) -> list[Route]:
    async def status(request: Request) -> Response:
        check_parameters(request)
        return JSONResponse(answers.as_json(backend.status()))

    async def live(request: Request) -> Response:
        check_parameters(request)
        return JSONResponse({"live": True})  # the loop answered: that is what it tells

    async def ready(request: Request) -> Response:
        check_parameters(request, "verbose")
        checks = dict(backend.checks())
        return JSONResponse(
            {"ready": all(checks.values()), "checks": checks},
            200 if all(checks.values()) else 503,
        )

    async def stop(request: Request) -> Response:
        check_parameters(request)
        backend.stop()
        return JSONResponse({"stopping": True}, 202)

    async def models(request: Request) -> Response:
        check_parameters(request)
        return JSONResponse(answers.as_json(await backend.models()))

    async def goods(request: Request) -> Response:
        check_parameters(request)
        told = await read_struct(request, GoodsBody, GOODS_BYTES_MAX)
        await backend.store_goods(told.kind, bytes.fromhex(told.identity), Path(told.folder))
        return JSONResponse({"stored": told.identity}, 201)

    async def release(request: Request) -> Response:
        check_parameters(request)
        released = await backend.release(hash_in_path(request))
        return JSONResponse(answers.as_json(released))

    async def infer(request: Request) -> Response:
        check_parameters(request)
        order = order_of(await read_body(request, QUESTION_BYTES_MAX, "application/json"))

        async def work(tell: Tell) -> None:
            async def tell_text(text: str) -> None:
                await tell({"text": text})

            receipt = await backend.infer(order, tell_text)
            await tell({"receipt": answers.as_json(receipt)})

        return LineStream(work, where="/infer")

    async def disclosure(request: Request) -> Response:
        check_parameters(request)
        receipt = hash_in_path(request)
        told = backend.disclose(receipt)
        return shown(None if told is None else disclosure_shown(receipt, told), "disclosure")

    async def audit(request: Request) -> Response:
        check_parameters(request)
        told = await read_struct(request, DisclosureBody, DISCLOSURE_BYTES_MAX)
        receipt = hash_in_path(request)
        if told.receipt != receipt.hex():
            raise Invalid("disclosure.receipt", why="of another one")
        return shown(await backend.audit(receipt, disclosure_of(told)), "receipt")

    return [
        route("GET", "/status", status),
        route("GET", "/livez", live),
        route("GET", "/readyz", ready),
        route("POST", "/stop", stop),
        route("GET", "/models", models),
        route("POST", "/goods", goods),
        route("POST", "/channels/{id}/release", release),
        route("POST", "/infer", infer),
        route("GET", "/receipts/{id}/disclosure", disclosure),
        route("POST", "/receipts/{id}/audit", audit),
    ]


def disclosure_shown(receipt: bytes, told: Disclosure) -> answers.DisclosureAnswer:
    """What `disclosure_of` reads."""
    return answers.DisclosureAnswer(
        receipt=receipt,
        order=told.order,
        payer_nonce=told.payer_nonce,
        provider_nonce=told.provider_nonce,
        prompt=pack_ids(told.prompt),
        answers=tuple(map(pack_ids, told.answers)),
        sketch=told.sketch,
        statement=told.statement,
    )


def disclosure_of(told: DisclosureBody) -> Disclosure:
    """Raises Invalid where hex or token ids are none."""
    return Disclosure(
        order=_unhex(told.order),
        payer_nonce=_unhex(told.payer_nonce),
        provider_nonce=_unhex(told.provider_nonce),
        prompt=unpack_ids(_unhex(told.prompt)),
        answers=tuple(unpack_ids(_unhex(each)) for each in told.answers),
        sketch=_unhex(told.sketch),
        statement=_unhex(told.statement),
    )


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise Invalid("request.invalid_value", why=str(error)) from None


def order_of(body: bytes) -> Order:
    """The order in a request's JSON; raises Invalid `request.invalid_value` with what is wrong."""
    asked = struct_of(body, Question)
    return Order(
        model=asked.model,
        prompt=asked.prompt,
        max_tokens=asked.max_tokens,
        temperature_milli=asked.temperature_milli,
        top_p_milli=asked.top_p_milli,
        top_k=asked.top_k,
        seed=asked.seed,
        max_fee=None if asked.max_fee is None else number_of(asked.max_fee, "max_fee"),
        provider=None if asked.provider is None else account_of(asked.provider),
    )


async def serve_socket(
    app: Starlette,
    path: Path,
    *,
    wait_for_stop: Callable[[], Awaitable[None]],
    drain_s: int,
    task_status: Any = trio.TASK_STATUS_IGNORED,  # libp2p brings old types for trio
) -> None:
    """Serve `app` on the Unix socket `path` (mode 0600) until `wait_for_stop` returns.

    Open streams get `drain_s` seconds more. The caller holds the home's lock, so a socket that lies
    there is a dead daemon's and is replaced. Removes the socket when it ends.
    """
    _remove_dead_socket(path)
    config = _server_config(f"unix:{path}", drain_s)
    config.umask = 0o177
    config.read_timeout = None
    try:
        await _serve(app, config, wait_for_stop, task_status)
    finally:
        _remove_dead_socket(path)


async def serve_listener(
    app: Starlette,
    listener: socket.socket,
    *,
    wait_for_stop: Callable[[], Awaitable[None]],
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on a bound socket, which is closed at the end: when `wait_for_stop` returns."""
    config = _server_config(f"fd://{listener.detach()}", 0)
    config.read_timeout = HEADER_TIMEOUT_S
    await _serve(app, config, wait_for_stop, task_status)


def _server_config(bind: str, drain_s: int) -> ServerConfig:
    config = ServerConfig()
    config.bind = [bind]
    config.graceful_timeout = drain_s
    config.keep_alive_timeout = HEADER_TIMEOUT_S
    config.backlog = CONNECTIONS_MAX
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    return config


async def _serve(
    app: Starlette,
    config: ServerConfig,
    wait_for_stop: Callable[[], Awaitable[None]],
    task_status: Any,
) -> None:
    async with trio.open_nursery() as nursery:
        # A trigger is given, so that hypercorn takes no signals: the daemon has them.
        await nursery.start(
            lambda task_status: serve(
                app,  # type: ignore[arg-type]  # hypercorn's ASGI types are its own
                config,
                shutdown_trigger=wait_for_stop,
                task_status=task_status,
            )
        )
        task_status.started()


def _remove_dead_socket(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
