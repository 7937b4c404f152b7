"""An inference server that speaks what `RemoteEngine` needs of vLLM's completions, over a
`ThreadEngine`: token-id prompts, streamed ids, adapters loaded by name, log-probabilities of
prompts. Its own wording of all else is as poor as a stranger's."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from node.serving.engine import (
    AdapterRef,
    EngineError,
    EngineSettings,
    Finish,
    GenRequest,
    Sampling,
    ScoreItem,
)
from node.serving.worker import ThreadEngine
from node.web.app import serve_listener


@dataclass
class OpenAIServer:
    """`told`: (path, body) of what was asked; `after`: pieces, then the connection breaks."""

    engine: ThreadEngine
    port: int
    told: list[tuple[str, Any]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    status: int = 200
    breaks_after: int | None = None
    garbage: bytes | None = None
    cancelled: int = 0
    load_error: str = ""
    headers: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        self.headers.append(request.headers.get("authorization", ""))
        names = ["tiny-base", *self.adapters]
        return JSONResponse({"object": "list", "data": [{"id": name} for name in names]})

    async def load(self, request: Request) -> Response:
        body = await self._body(request)
        name, folder = body["lora_name"], body["lora_path"]
        if self.load_error:
            return JSONResponse({"error": {"message": self.load_error}}, 400)
        await self.engine.load_adapter(AdapterRef(bytes.fromhex(name), folder))
        self.adapters[name] = folder
        return Response("Success")

    async def unload(self, request: Request) -> Response:
        body = await self._body(request)
        await self.engine.unload_adapter(bytes.fromhex(body["lora_name"]), drain=True)
        del self.adapters[body["lora_name"]]
        return Response("Success")

    async def _body(self, request: Request) -> Any:
        body = await request.json()
        self.told.append((request.url.path, body))
        return body

    async def complete(self, request: Request) -> Response:
        body = await self._body(request)
        if self.status != 200:
            return JSONResponse({"error": {"message": "no"}}, self.status)
        name = body["model"]
        if name != "tiny-base" and name not in self.adapters:
            return JSONResponse({"error": {"message": f"no model {name}"}}, 404)
        adapter = None if name == "tiny-base" else bytes.fromhex(name)
        if not body.get("stream"):
            return JSONResponse(await self._scored(body, adapter))
        events = self._events(body, adapter)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _scored(self, body: Any, adapter: bytes | None) -> Any:
        first, *rest = body["prompt"]
        item = ScoreItem(adapter, (first,), tuple(rest), Sampling(1))
        (score,) = await self.engine.score([item])
        rows: list[Any] = [None]
        for id, logprob, margin in zip(rest, score.logprobs, score.margins, strict=True):
            row = {str(id): {"logprob": logprob, "rank": 1}}
            if margin:
                row["the best"] = {"logprob": logprob + margin, "rank": 1}
            rows.append(row)
        return {"choices": [{"index": 0, "text": "", "prompt_logprobs": rows}]}

    async def _events(self, body: Any, adapter: bytes | None) -> AsyncIterator[bytes]:
        sampling = Sampling(
            body["max_tokens"],
            round(body["temperature"] * 1_000),
            round(body["top_p"] * 1_000),
            body.get("top_k", 0),
            body["n"],
            logprobs=body["logprobs"],
            flags=int(body.get("ignore_eos", False)),
        )
        wanted = GenRequest(
            len(self.told).to_bytes(4, "big"), b"t", adapter, tuple(body["prompt"]), sampling,
            bytes(32),
        )  # fmt: skip
        made = 0
        is_over = False
        try:
            async with self.engine.submit(wanted) as stream:
                async for event in stream:
                    if isinstance(event, Finish):
                        break
                    if self.breaks_after is not None and made >= self.breaks_after:
                        if self.garbage is not None:
                            yield self.garbage
                        return
                    made += 1
                    yield b"data: " + json.dumps(_piece(event)).encode() + b"\n\n"
            is_over = True
            yield b"data: [DONE]\n\n"
        finally:
            self.cancelled += not is_over


def _piece(token: Any) -> Any:
    word = f"token_id:{token.id}"
    top = {f"token_id:{id}": logprob for id, logprob in token.top}
    logprobs = {"tokens": [word], "token_logprobs": [token.logprob], "top_logprobs": [top]}
    choice = {"index": token.choice, "text": "", "logprobs": logprobs, "finish_reason": None}
    return {"object": "text_completion", "choices": [choice]}


@asynccontextmanager
async def openai_server(base: Path, port: int = 0) -> AsyncIterator[OpenAIServer]:
    """One running server; leaving the context takes it away at once."""
    engine = ThreadEngine(EngineSettings(str(base), rows=8, threads=1))
    listener = socket.create_server(("127.0.0.1", port))
    async with trio.open_nursery() as nursery:
        start: Any = nursery.start
        await start(engine.run)
        server = OpenAIServer(engine, listener.getsockname()[1])
        await start(
            partial(serve_listener, server.app(), listener, wait_for_stop=trio.sleep_forever)
        )
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


__all__ = ["EngineError", "OpenAIServer", "openai_server"]
