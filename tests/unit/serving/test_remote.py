"""The remote engine against a real server: the same tokens, its losses, its refusals."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from openai_kit import OpenAIServer, openai_server

from node.serving import remote as remote_module
from node.serving.basefacts import padded, read_facts
from node.serving.engine import (
    AdapterRef,
    BadAdapter,
    BadSampling,
    EngineLost,
    EngineSettings,
    Finish,
    GenRequest,
    GradItem,
    Overloaded,
    Sampling,
    ScoreItem,
    Token,
    TooLong,
    UnknownAdapter,
    Unsupported,
)
from node.serving.remote import RemoteEngine, RemoteSettings

pytestmark = pytest.mark.ml

MakeAdapter = Callable[..., tuple[bytes, str]]
PROMPT = tuple(range(40, 60))


@asynccontextmanager
async def remote(
    base: Path, *servers: OpenAIServer, gradients: Any = None, **settings: Any
) -> AsyncIterator[RemoteEngine]:
    urls = tuple(server.url for server in servers)
    engine = RemoteEngine(RemoteSettings(str(base), urls, **settings), gradients)
    async with trio.open_nursery() as nursery:
        start: Any = nursery.start
        await start(engine.run)
        yield engine
        await engine.aclose(1)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(base: Path, count: int = 1, **settings: Any):
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(openai_server(base)) for _ in range(count)]
        engine = await stack.enter_async_context(remote(base, *servers, **settings))
        yield engine, servers


def request(adapter: bytes | None = None, **sampling: Any) -> GenRequest:
    wanted = Sampling(**{"max_tokens": 12, "flags": 1, **sampling})
    return GenRequest(b"r", b"t", adapter, PROMPT, wanted, bytes(32))


async def answer(engine: Any, wanted: GenRequest) -> tuple[list[Token], Finish]:
    tokens: list[Token] = []
    async with engine.submit(wanted) as stream:
        async for event in stream:
            if isinstance(event, Finish):
                return tokens, event
            tokens.append(event)
    raise AssertionError("no end")


def local_answer(base: Path, wanted: GenRequest, *refs: AdapterRef) -> tuple[list[Token], Finish]:
    from node.serving.slots import SlotCore

    core = SlotCore(EngineSettings(str(base), rows=4))
    for ref in refs:
        core.load(ref)
    core.submit(wanted)
    tokens: list[Token] = []
    while True:
        for _, event in core.step():
            if isinstance(event, Finish):
                return tokens, event
            tokens.append(event)


def test_facts_of_a_folder_are_those_of_the_loaded_base(tiny_base: Path) -> None:
    from node.serving.slots import SlotCore

    core, facts = SlotCore(EngineSettings(str(tiny_base))), read_facts(tiny_base)
    assert (facts.vocab, facts.length) == (core.info.vocab, core.info.max_model_len)
    assert (list(facts.pieces), facts.ends) == (core._pieces, core._eos)


async def test_greedy_answers_are_those_of_our_own_engine(tiny_base, make_adapter) -> None:
    ref = AdapterRef(*make_adapter(4))
    async with served(tiny_base) as (engine, (server,)):
        await engine.load_adapter(ref)
        for wanted in (request(), request(ref.hash), request(ref.hash, n=2, logprobs=3)):
            told = await answer(engine, wanted)
            own = local_answer(tiny_base, wanted, ref)
            assert [(t.choice, t.id, t.text) for t in told[0]] == [
                (t.choice, t.id, t.text) for t in own[0]
            ]
            assert told[1].reasons == own[1].reasons
            assert [len(c.logprobs) for c in told[1].choices] == [48] * wanted.sampling.n
            assert all(c.fingerprints == b"" for c in told[1].choices)
        loads = [body for path, body in server.told if "load" in path]
        assert loads == [{"lora_name": ref.hash.hex(), "lora_path": ref.folder}], "once"
        assert engine.stats().generation_tokens == 12 + 12 + 24
        assert [(i.hash, i.tier) for i in await engine.adapters()] == [(ref.hash, "ram")]


async def test_ends_and_stop_strings_are_cut_by_our_own_rules(tiny_base) -> None:
    async with served(tiny_base) as (engine, (server,)):
        tokens, _ = await answer(engine, request(max_tokens=40))
        stop = b"".join(token.text for token in tokens)[4:6]
        wanted = request(max_tokens=40, stop=(stop,))
        cut, finish = await answer(engine, wanted)
        own, ending = local_answer(tiny_base, wanted)
        assert finish.reasons == ending.reasons == ("stop",)
        assert [t.id for t in cut] == [t.id for t in own]
        end = tokens[2].id
        engine._facts = replace(engine._facts, ends=frozenset({end}))
        cut, finish = await answer(engine, request(max_tokens=40, flags=0))
        assert (cut[-1].id, finish.reasons) == (end, ("stop",))
        await trio.sleep(0.3)
        assert server.cancelled >= 1, "the server stops when nobody listens"


async def test_leaving_a_stream_and_a_deadline_end_it(tiny_base) -> None:
    async with served(tiny_base) as (engine, _):
        async with engine.submit(request(max_tokens=200)) as stream:
            async for _ in stream:
                break
        assert all(one.running == 0 for one in engine._servers)
        soon = replace(request(max_tokens=200), deadline_ms=time.time_ns() // 1_000_000 + 30)
        _, finish = await answer(engine, soon)
        assert finish.reasons == ("deadline",)


async def test_broken_stream_ends_with_what_was_told(tiny_base) -> None:
    async with served(tiny_base) as (engine, (server,)):
        for garbage in (
            None,
            b"data: {no json\n\n",
            b'data: {"error": {}}\n\n',
            b'data: {"choices": [{"index": 7, "logprobs": {"tokens": []}}]}\n\n',
            b'data: {"choices": [{"index": 0, "logprobs": {"tokens": ["hello"], '
            b'"token_logprobs": [0]}}]}\n\n',
            b'data: {"choices": [{"index": 0, "logprobs": {"tokens": ["token_id:99999"], '
            b'"token_logprobs": [0]}}]}\n\n',
        ):
            server.breaks_after, server.garbage = 3, garbage
            tokens, finish = await answer(engine, request())
            assert (len(tokens), finish.reasons) == (3, ("engine_lost",))
            assert len(finish.choices[0].logprobs) == 12


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, Overloaded), (503, Overloaded), (500, EngineLost), (400, Unsupported)],
)
async def test_refusal_of_a_server_is_raised_before_any_token(tiny_base, status, error) -> None:
    async with served(tiny_base) as (engine, (server,)):
        server.status = status
        with pytest.raises(error):
            await answer(engine, request())
        assert all(one.running == 0 for one in engine._servers)


async def test_what_cannot_be_asked_is_refused_here(tiny_base, make_adapter, tmp_path) -> None:
    async with served(tiny_base) as (engine, (server,)):
        for wanted, error in (
            (request(bytes(32)), UnknownAdapter),
            (request(max_tokens=0), BadSampling),
            (request(max_tokens=250), TooLong),
            (replace(request(), prompt=()), TooLong),
            (replace(request(), prompt=(10**6,)), BadSampling),
        ):
            with pytest.raises(error):
                await answer(engine, wanted)
        with pytest.raises(BadAdapter):
            await engine.load_adapter(AdapterRef(bytes(32), make_adapter(4)[1]))
        with pytest.raises(BadAdapter):
            await engine.load_adapter(AdapterRef(bytes(32), str(tmp_path)))
        with pytest.raises(UnknownAdapter):
            await engine.unload_adapter(bytes(32))
        with pytest.raises(Unsupported):
            await engine.gradients([GradItem((bytes(32),) * 2, (1,), ((2,),), "x")])
        assert [path for path, _ in server.told] == []


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not is_so():  # noqa: ASYNC110  # probes tell nobody
            await trio.sleep(0.05)


async def test_lost_server_is_left_out_and_taken_back(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr(remote_module, "PROBE_EVERY_S", 0.05)
    async with openai_server(tiny_base) as one:
        async with openai_server(tiny_base) as two:
            pass
        async with remote(tiny_base, one, two) as engine:
            await until(lambda: [s.is_alive for s in engine._servers] == [True, False])
            tokens, _ = await answer(engine, request())
            assert len(tokens) == 12
            async with openai_server(tiny_base, port=two.port):
                await until(lambda: all(s.is_alive for s in engine._servers))


async def test_engine_waits_for_a_server_and_goes_on_with_the_next(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr(remote_module, "PROBE_EVERY_S", 0.05)
    async with trio.open_nursery() as nursery:
        async with openai_server(tiny_base) as server:
            engine = RemoteEngine(RemoteSettings(str(tiny_base), (server.url,)))
            start: Any = nursery.start
            await start(engine.run)
            await answer(engine, request())
        await until(lambda: engine.state == "restarting")
        with pytest.raises(EngineLost):
            await answer(engine, request())
        async with openai_server(tiny_base, port=server.port):
            with trio.fail_after(20):
                await engine.wait_ready()
            tokens, _ = await answer(engine, request())
            assert len(tokens) == 12
        nursery.cancel_scope.cancel()


async def test_scores_come_from_prompt_logprobs_and_margins_when_greedy(
    tiny_base, make_adapter
) -> None:
    ref = AdapterRef(*make_adapter(4))
    async with served(tiny_base) as (engine, _):
        await engine.load_adapter(ref)
        tokens, _ = await answer(engine, request(ref.hash))
        ids = tuple(token.id for token in tokens)
        sampling = Sampling(12, flags=1)
        right = ScoreItem(ref.hash, PROMPT, ids, sampling)
        other = replace(right, answer=(*ids[:5], (ids[5] + 1) % 256, *ids[6:]))
        good, bad = await engine.score([right, other])
        assert good.logprobs == pytest.approx([t.logprob for t in tokens], abs=1e-4)
        assert max(good.margins) < 1e-3 < max(bad.margins)
        assert good.fingerprints == ()
        hot = replace(right, sampling=Sampling(12, temperature_milli=900))
        (found,) = await engine.score([hot])
        assert set(found.margins) == {0.0}


async def test_adapter_that_a_server_lost_or_has_already_is_loaded_again(
    tiny_base, make_adapter
) -> None:
    ref = AdapterRef(*make_adapter(4))
    async with served(tiny_base) as (engine, (server,)):
        await engine.load_adapter(ref)
        await answer(engine, request(ref.hash))
        del server.adapters[ref.hash.hex()]  # a restart between two probes
        with pytest.raises(EngineLost):
            await answer(engine, request(ref.hash))
        await answer(engine, request(ref.hash))
        engine._loaded[server.url].clear()  # and one that we only thought of as lost
        server.load_error = "The lora adapter has already been loaded"
        await answer(engine, request(ref.hash))
        server.load_error = "no such folder"
        engine._loaded[server.url].clear()
        with pytest.raises(Unsupported):
            await answer(engine, request(ref.hash))
        assert engine._loading == {}


@pytest.mark.parametrize("data", [None, 5, {"id": 1}, [None, "x"]])
async def test_server_that_lists_no_models_does_not_live(tiny_base, data: object) -> None:
    engine = RemoteEngine(RemoteSettings(str(tiny_base), ("http://127.0.0.1:1",)))

    async def get(server: Any, path: str) -> dict[str, Any]:
        return {"data": data}

    engine._get = get
    (server,) = engine._servers
    await engine._probe(server)
    assert server.failures == 1


async def test_folder_that_this_machine_cannot_read_is_a_bad_adapter(
    tiny_base, make_adapter, monkeypatch
) -> None:
    """As with an engine of our own: it ends no node."""

    def read(folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(remote_module, "read_adapter", read)
    engine = RemoteEngine(RemoteSettings(str(tiny_base), ("http://127.0.0.1:1",)))
    with pytest.raises(BadAdapter) as refusal:
        await engine.load_adapter(AdapterRef(*make_adapter(4)))
    assert refusal.value.facts["why"] == "Permission denied"


async def test_adapter_unloaded_while_a_request_waits_for_it_refuses_that_request(
    tiny_base, make_adapter
) -> None:
    ref = AdapterRef(*make_adapter(4))
    async with served(tiny_base) as (engine, (server,)):
        await engine.load_adapter(ref)
        refused: list[UnknownAdapter] = []

        async def ask() -> None:
            try:
                await answer(engine, request(ref.hash))
            except UnknownAdapter as error:
                refused.append(error)

        alone = engine._alone(engine._servers[0], ref.hash)
        async with trio.open_nursery() as nursery, alone:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await engine.unload_adapter(ref.hash)
        assert (len(refused), engine._loading) == (1, {})
        assert [path for path, _ in server.told if "load" in path] == []


async def test_prompts_go_past_every_proxy_of_the_environment(tiny_base, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with served(tiny_base) as (engine, _):
        tokens, _ = await answer(engine, request())
        assert len(tokens) == 12


async def test_padding_of_the_base_has_no_text_and_a_line_has_an_end(tiny_base) -> None:
    async with served(tiny_base) as (engine, (server,)):
        vocab = engine._facts.vocab
        assert len(read_facts(tiny_base).pieces) == vocab
        engine._facts = replace(engine._facts, pieces=padded(engine._facts.pieces, vocab + 9))
        engine._facts = replace(engine._facts, vocab=vocab + 9)
        server.breaks_after = 0
        server.garbage = (
            b'data: {"choices": [{"index": 0, "logprobs": {"tokens": ["token_id:%d"], '
            b'"token_logprobs": [-1.0]}}]}\n\n' % (vocab + 5)
        )
        (token,), _ = await answer(engine, request())
        assert (token.id, token.text) == (vocab + 5, b"")
        server.garbage = b"data: " + b"x" * (2 << 20)
        tokens, finish = await answer(engine, request())
        assert (tokens, finish.reasons) == ([], ("engine_lost",))


async def test_token_is_shown_to_the_server(tiny_base) -> None:
    async with served(tiny_base, token="let me in") as (_, (server,)):
        assert server.headers[-1] == "Bearer let me in"


async def test_plain_server_takes_only_what_it_has_under_its_hash(tiny_base, make_adapter) -> None:
    one, other = AdapterRef(*make_adapter(4)), AdapterRef(*make_adapter(5))
    async with openai_server(tiny_base) as server:
        await server.engine.load_adapter(one)
        server.adapters[one.hash.hex()] = one.folder
        async with remote(tiny_base, server, flavour="plain") as engine:
            for ref in (one, other):
                await engine.load_adapter(ref)
            await answer(engine, request(one.hash))
            with pytest.raises(UnknownAdapter):
                await answer(engine, request(other.hash))
            with pytest.raises(Unsupported):
                await engine.score([ScoreItem(None, PROMPT, (1,), Sampling(1))])


async def test_gradients_are_the_local_engines(tiny_base, make_adapter) -> None:
    asked: list[Any] = []

    class Local:
        state = "ready"

        async def run(self, *, task_status: Any) -> None:
            task_status.started()
            await trio.sleep_forever()

        async def load_adapter(self, ref: AdapterRef, pin: bool = False) -> None:
            asked.append(ref.hash)

        async def unload_adapter(self, adapter: bytes, drain: bool = False) -> None:
            asked.append((adapter, drain))

        async def gradients(self, items: Any) -> list[str]:
            return ["sketch"] * len(items)

    early, middle, final = (AdapterRef(*make_adapter(n)) for n in (4, 5, 6))
    async with served(tiny_base, gradients=Local()) as (engine, _):
        for ref in (early, middle, final):
            await engine.load_adapter(ref)
        assert engine.info.can == ("gradients",)
        item = GradItem((early.hash, middle.hash), (1,), ((2,),), "x")
        assert await engine.gradients([item, item]) == ["sketch", "sketch"]
        assert sorted(asked) == sorted([early.hash, middle.hash]), "checkpoints alone, and once"
        await engine.unload_adapter(early.hash, drain=True)
        assert asked[-1] == (early.hash, True)
