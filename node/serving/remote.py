"""An engine over inference servers that speak OpenAI's completions, vLLM above all.

Why over HTTP and never imported: such a server brings its own torch, its own GPUs and, by Ray, its
own machines; a provider that outgrows one GPU keeps olnode as it is. Prompts go out as token ids
and answers come back as token ids, so receipts mean the same. Ends and stop strings are ours: the
server is told to ignore its own, and the stream is cut where the rules cut it.
What a server cannot do: our noise, fingerprints, gradients. So it answers at temperature 0 or for
orders that allow it, and gradients are a local engine's, which has the same base (page 50 §10).
What this file does not know: which server is best (`servers.py`), what an answer costs.
"""

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from consensus.primitives.digest import sha256
from node.serving.adapters import BUCKETS, AdapterFile, base_hash, read_adapter
from node.serving.basefacts import read_facts
from node.serving.completions import STRANGE, Completion, lines_of, objects_of
from node.serving.engine import (
    CHOICES_MAX,
    AdapterInfo,
    AdapterRef,
    BadAdapter,
    EngineError,
    EngineInfo,
    EngineLost,
    EngineSettings,
    EngineStats,
    GenRequest,
    GradItem,
    HostedEngine,
    Overloaded,
    Score,
    ScoreItem,
    Sketch,
    State,
    Stream,
    TaskStatus,
    UnknownAdapter,
    Unsupported,
    check_request,
)
from node.serving.servers import Server, choose

if TYPE_CHECKING:
    import httpx

    from node.serving.client import Fetch

Flavour = Literal["vllm", "plain"]

PROBE_EVERY_S: Final = 5.0
PROBE_S: Final = 5.0
CONNECT_S: Final = 5.0
SILENCE_S: Final = 60.0  # between two pieces of an answer
RUNNING_MAX: Final = 512
ALREADY: Final = "already"  # vLLM's word for an adapter that it has under this name


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """`urls` of servers with the same base; `token`: what they want to see, or empty."""

    base_folder: str
    urls: tuple[str, ...]
    flavour: Flavour = "vllm"
    token: str = ""
    dtype_class: str = "fp32"


def make_remote(
    settings: EngineSettings,
    fetch: "Fetch",
    *,
    urls: tuple[str, ...],
    flavour: Flavour,
    token: str,
    local_gradients: bool,
) -> "RemoteEngine":
    """An engine over servers at `urls`; beside them, if wanted, a worker for gradients, which has
    lost adapters fetched."""
    from node.serving.worker import WorkerEngine

    gradients: HostedEngine | None = None
    if local_gradients:
        gradients = WorkerEngine(dataclasses.replace(settings, rows=1), fetch)
    return RemoteEngine(
        RemoteSettings(settings.base_folder, urls, flavour, token, settings.dtype_class), gradients
    )


class RemoteEngine:
    """An Engine. Start `run` in a nursery; `gradients`: the local engine that makes them."""

    def __init__(self, settings: RemoteSettings, gradients: HostedEngine | None = None) -> None:
        self.settings = settings
        self.state: State = "starting"
        self._gradients = gradients
        self._facts = read_facts(settings.base_folder)
        self._servers = [Server(url.rstrip("/")) for url in settings.urls]
        self._refs: dict[bytes, AdapterRef] = {}
        self._infos: dict[bytes, AdapterInfo] = {}
        self._loaded: dict[str, set[bytes]] = {server.url: set() for server in self._servers}
        self._loading: dict[tuple[str, bytes], trio.Lock] = {}
        self._local: set[bytes] = set()  # what the local engine has: attribution checkpoints
        self._base_names: dict[str, str] = {}  # what each server calls the base
        self._client: httpx.AsyncClient | None = None
        self._ready = trio.Event()
        self._closed = trio.Event()
        self._counts = dict.fromkeys(
            ("prompt", "generated", "refused", "cancelled", "finished", "scored", "loads"), 0
        )
        self.info = EngineInfo(
            kind="remote",
            base=base_hash(settings.base_folder),
            dtype_class=settings.dtype_class,
            device="remote",
            rows=RUNNING_MAX,
            max_model_len=self._facts.length,
            max_rank=BUCKETS[-1],
            vocab=self._facts.vocab,
            can=("gradients",) if gradients is not None else (),
            build=sha256(f"remote/{settings.flavour}".encode()),
        )

    # --- the servers' life

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Probe until `aclose`; told as started once one server answers."""
        import httpx

        told = False
        headers = {"Authorization": f"Bearer {self.settings.token}"} if self.settings.token else {}
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        limits = httpx.Limits(max_connections=RUNNING_MAX * 2)
        async with (
            trio.open_nursery() as nursery,
            # No proxy of the environment's: prompts go to the servers named and nowhere else.
            httpx.AsyncClient(
                headers=headers, timeout=timeout, limits=limits, trust_env=False
            ) as client,
        ):
            self._client = client
            try:
                if self._gradients is not None:
                    start: Any = nursery.start  # libp2p brings old types for trio
                    await start(self._gradients.run)
                while not self._closed.is_set():
                    async with trio.open_nursery() as probes:
                        for server in self._servers:
                            probes.start_soon(self._probe, server)
                    self._note_state()
                    if self.state == "ready" and not told:
                        told = True
                        task_status.started()
                    with trio.move_on_after(PROBE_EVERY_S):
                        await self._closed.wait()
            finally:
                self._client, self.state = None, "closed"
            nursery.cancel_scope.cancel()

    async def _probe(self, server: Server) -> None:
        """Ask what it serves: an answer is life, and names the base."""
        with trio.move_on_after(PROBE_S):
            with suppress(EngineError):
                told = await self._get(server, "/v1/models")
                rows = told.get("data")
                rows = rows if isinstance(rows, list) else []
                names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
                if names:
                    self._note_models(server, names)
                    server.failures = 0
                    return
        server.failures += 1

    def _note_models(self, server: Server, names: Sequence[str]) -> None:
        """What it has. After it was away, that alone: it may have come back empty."""
        adapters = {bytes.fromhex(name) for name in names if _is_hash(name)}
        base = [name for name in names if not _is_hash(name)]
        self._base_names[server.url] = base[0] if base else names[0]
        if not server.failures:  # else what was loaded since it was asked would be forgotten
            adapters |= self._loaded[server.url]
        self._loaded[server.url] = adapters

    def _note_state(self) -> None:
        is_alive = any(not server.failures for server in self._servers)
        if is_alive and self.state != "ready":
            self.state = "ready"
            self._ready.set()
        elif not any(server.is_alive for server in self._servers) and self.state == "ready":
            self.state, self._ready = "restarting", trio.Event()

    async def wait_ready(self) -> None:
        """Until a server answers; for ever when all are lost: give it a deadline."""
        await self._ready.wait()

    async def aclose(self, drain_s: float = 10.0) -> None:
        """Stop: live streams get up to `drain_s` to end."""
        with trio.move_on_after(drain_s):
            while any(server.running for server in self._servers):  # noqa: ASYNC110  # streams end
                await trio.sleep(0.05)
        self._closed.set()

    # --- adapters

    async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> AdapterInfo:
        """Check the files here, and remember: a server is told when the adapter is first wanted.

        Raises BadAdapter.
        """
        try:
            file = await trio.to_thread.run_sync(read_adapter, ref.folder)
        except OSError as error:  # it went meanwhile, or this machine cannot read it
            raise BadAdapter(key=ref.folder, why=str(error.strerror)) from None
        if file.hash != ref.hash:
            raise BadAdapter(key="hash", value=file.hash.hex())
        self._refs[ref.hash] = ref
        self._infos[ref.hash] = _info(file, ref.hash)
        return self._infos[ref.hash]

    async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
        """Forget it here and at every server that has it."""
        if self._refs.pop(adapter, None) is None:
            raise UnknownAdapter(adapter=adapter.hex())
        self._infos.pop(adapter)
        if self._gradients is not None and adapter in self._local:
            self._local.discard(adapter)
            await self._gradients.unload_adapter(adapter, drain)
        for server in self._servers:
            if adapter in self._loaded[server.url] and self.settings.flavour == "vllm":
                self._loaded[server.url].discard(adapter)
                with suppress(EngineError):
                    await self._post(
                        server, "/v1/unload_lora_adapter", {"lora_name": adapter.hex()}
                    )

    async def adapters(self) -> list[AdapterInfo]:
        """Every adapter that was loaded; `ram` where a server has it."""
        there = set().union(*self._loaded.values())
        return [info if hash in there else _on_disk(info) for hash, info in self._infos.items()]

    async def _have_loaded(self, server: Server, adapter: bytes) -> None:
        """Have a server know an adapter, by its hash: names never select anything else."""
        if adapter in self._loaded[server.url]:
            return
        if self.settings.flavour == "plain":
            raise UnknownAdapter(adapter=adapter.hex(), why="not served under its hash")
        async with self._alone(server, adapter):
            if adapter in self._loaded[server.url]:
                return
            ref = self._refs.get(adapter)
            if ref is None:  # unloaded while this waited
                raise UnknownAdapter(adapter=adapter.hex())
            body = {"lora_name": adapter.hex(), "lora_path": ref.folder}
            try:
                await self._post(server, "/v1/load_lora_adapter", body)
            except Unsupported as refusal:
                if ALREADY not in str(refusal):
                    raise
            self._loaded[server.url].add(adapter)
            self._counts["loads"] += 1

    @asynccontextmanager
    async def _alone(self, server: Server, adapter: bytes) -> AsyncIterator[None]:
        key = server.url, adapter
        lock = self._loading.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._loading.pop(key, None)

    # --- answers

    @asynccontextmanager
    async def submit(self, request: GenRequest) -> AsyncIterator[Stream]:
        """Ask a server; leaving the context closes the connection, which stops it there."""
        self._check(request)
        server = self._server_for(request.adapter or b"")
        server.running += 1
        try:
            if request.adapter is not None:
                await self._have_loaded(server, request.adapter)
            async with self._opened(server, self._question(server, request)) as pieces:
                stream = Completion(request, pieces, self._facts, self._counts)
                yield stream
                self._counts["cancelled"] += not stream.is_ended
        finally:
            server.running -= 1

    def _check(self, request: GenRequest) -> None:
        check_request(request, self._facts.length, self._facts.vocab, CHOICES_MAX)
        if request.adapter is not None and request.adapter not in self._refs:
            raise UnknownAdapter(adapter=request.adapter.hex())
        if sum(server.running for server in self._servers) >= RUNNING_MAX:
            self._counts["refused"] += 1
            raise Overloaded(retry_after_s=1)

    def _server_for(self, adapter: bytes) -> Server:
        server = choose(self._servers, adapter)
        if server is None or self._client is None:
            raise EngineLost(state=self.state)
        return server

    def _question(self, server: Server, request: GenRequest) -> dict[str, Any]:
        sampling = request.sampling
        asked: dict[str, Any] = {
            "model": self._name(server, request.adapter),
            "prompt": list(request.prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature_milli / 1_000,
            "top_p": sampling.top_p_milli / 1_000,
            "n": sampling.n,
            "stream": True,
            "logprobs": max(1, sampling.logprobs),
            "return_tokens_as_token_ids": True,
            "ignore_eos": True,  # we cut where the rules do, and see the token that ends it
        }
        if sampling.top_k:
            asked["top_k"] = sampling.top_k
        return asked

    def _name(self, server: Server, adapter: bytes | None) -> str:
        return self._base_names.get(server.url, "") if adapter is None else adapter.hex()

    # --- others' answers, gradients

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """By the servers' log-probabilities of a prompt; margins only at temperature 0, where the
        best rival is the likeliest token. Raises Unsupported for servers that tell none."""
        if self.settings.flavour != "vllm":
            raise Unsupported(what="scores")
        return [await self._score(item) for item in items]

    async def _score(self, item: ScoreItem) -> Score:
        if item.adapter is not None and item.adapter not in self._refs:
            raise UnknownAdapter(adapter=item.adapter.hex())
        server = self._server_for(item.adapter or b"")
        if item.adapter is not None:
            await self._have_loaded(server, item.adapter)
        told = await self._post(
            server,
            "/v1/completions",
            {
                "model": self._name(server, item.adapter),
                "prompt": [*item.prompt, *item.answer],
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 1,
            },
        )
        self._counts["scored"] += 1
        try:
            rows = told["choices"][0]["prompt_logprobs"][len(item.prompt) :]
            pairs = [
                (float(row[str(id)]["logprob"]), max(float(x["logprob"]) for x in row.values()))
                for id, row in zip(item.answer, rows, strict=True)
            ]
        except STRANGE as error:
            raise Unsupported(what=f"scores: {error!r}"[:200]) from None
        is_greedy = not item.sampling.temperature_milli
        margins = tuple(best - own if is_greedy else 0.0 for own, best in pairs)
        return Score(tuple(own for own, _ in pairs), margins, ())

    async def gradients(self, items: Sequence[GradItem]) -> list[Sketch]:
        """The local engine's; raises Unsupported without one."""
        if self._gradients is None:
            raise Unsupported(what="gradients")
        for hash in {hash for item in items for hash in item.checkpoints} - self._local:
            ref = self._refs.get(hash)
            if ref is None:
                raise UnknownAdapter(adapter=hash.hex())
            await self._gradients.load_adapter(ref)
            self._local.add(hash)
        return await self._gradients.gradients(items)

    def stats(self) -> EngineStats:
        """Counters since the start; what servers hold of their own is theirs to tell."""
        counts = self._counts
        return EngineStats(
            running=sum(server.running for server in self._servers),
            waiting=0,
            steps=0,
            prompt_tokens=counts["prompt"],
            generation_tokens=counts["generated"],
            refused=counts["refused"],
            cancelled=counts["cancelled"],
            finished=counts["finished"],
            gradients_waiting=0,
            gradients_done=0,
            scored=counts["scored"],
            adapters_ram=len(set().union(*self._loaded.values())),
            adapters_slot=0,
            slot_loads=counts["loads"],
            batch_adapters_max=0,
        )

    # --- HTTP

    async def _get(self, server: Server, path: str) -> dict[str, Any]:
        return await self._ask("GET", server, path, None)

    async def _post(self, server: Server, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._ask("POST", server, path, body)

    async def _ask(
        self, method: str, server: Server, path: str, body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The JSON object that comes back, or an empty one; raises what `_refusal` says."""
        import httpx

        if self._client is None:
            raise EngineLost(state=self.state)
        try:
            answer = await self._client.request(method, server.url + path, json=body)
        except httpx.HTTPError as error:
            server.failures += 1
            raise EngineLost(why=repr(error)[:200]) from None
        if answer.status_code >= 400:
            raise _refusal(answer.status_code, answer.text)
        try:
            found = answer.json()
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @asynccontextmanager
    async def _opened(
        self, server: Server, question: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The objects of a stream of server-sent events; refusals are raised on entering."""
        import httpx

        assert self._client is not None
        url = server.url + "/v1/completions"
        try:
            async with self._client.stream("POST", url, json=question) as answer:
                if answer.status_code == 404:  # it has forgotten the adapter: loaded anew next time
                    self._loaded[server.url].discard(_hash_of(question))
                    raise EngineLost(why="the server does not know the adapter any more")
                if answer.status_code >= 400:
                    told = (await answer.aread()).decode("utf-8", "replace")
                    raise _refusal(answer.status_code, told)
                yield objects_of(lines_of(_bytes_of(answer)))
        except httpx.HTTPError as error:
            server.failures += 1
            raise EngineLost(why=repr(error)[:200]) from None


async def _bytes_of(answer: "httpx.Response") -> AsyncIterator[bytes]:
    """What comes, as it comes; raises EngineLost when the connection breaks."""
    import httpx

    try:
        async for piece in answer.aiter_bytes():
            yield piece
    except httpx.HTTPError as error:
        raise EngineLost(why=repr(error)[:200]) from None


def _refusal(status: int, told: str) -> EngineLost | Overloaded | Unsupported:
    if status in (429, 503):
        return Overloaded(retry_after_s=1)
    if status >= 500:
        return EngineLost(status=status, why=told[:200])
    return Unsupported(what=f"status {status}: {told[:200]}")


def _hash_of(question: Mapping[str, Any]) -> bytes:
    name = str(question["model"])
    return bytes.fromhex(name) if _is_hash(name) else b""


def _is_hash(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _info(file: AdapterFile, hash: bytes) -> AdapterInfo:
    return AdapterInfo(hash, file.rank, file.bucket, file.targets, 0, "ram")


def _on_disk(info: AdapterInfo) -> AdapterInfo:
    return AdapterInfo(info.hash, info.rank, info.bucket, info.targets, 0, "disk")
