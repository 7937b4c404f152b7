"""What a worker lacks its host fetches: a few at once, in time, and each worker is answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from node.serving import client, frames
from node.serving.client import FETCH_S, FETCHES_MAX, EngineClient, Fetch, FetchFailed, LinkLost
from node.serving.engine import (
    AdapterInfo,
    AdapterRef,
    EngineInfo,
    EngineSettings,
    EngineStats,
    GenRequest,
    Sampling,
)


class Played:
    """A worker made of two lists: what it was told, and what it says."""

    def __init__(self) -> None:
        self.told: list[frames.ToWorker] = []
        self.say, self._heard = trio.open_memory_channel[frames.FromWorker](100)

    def send(self, frame: frames.ToWorker) -> None:
        self.told.append(frame)

    async def receive(self) -> frames.FromWorker:
        try:
            return await self._heard.receive()
        except trio.EndOfChannel:
            raise LinkLost from None

    def kill(self) -> None:
        self.say.close()

    def answers(self) -> list[frames.ToWorker]:
        return [x for x in self.told if isinstance(x, frames.Found | frames.Missing)]


@asynccontextmanager
async def hosted(fetch: Fetch | None) -> AsyncIterator[tuple[EngineClient, list[Played]]]:
    """A client whose workers are played and ready at once."""
    links: list[Played] = []

    @asynccontextmanager
    async def open_link() -> AsyncIterator[Played]:
        links.append(Played())
        links[-1].say.send_nowait(
            frames.Ready(EngineInfo("torch", b"", "fp32", "cpu", 1, 1, 1, 1, (), b""))
        )
        links[-1].say.send_nowait(frames.Stats(EngineStats(endings={"stop": 2})))
        yield links[-1]

    engine = EngineClient(EngineSettings("base"), open_link, fetch=fetch)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine, links
        nursery.cancel_scope.cancel()


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def wants(link: Played, count: int) -> None:
    for number in range(count):
        link.say.send_nowait(frames.Wanted(name(number)))
    await trio.testing.wait_all_tasks_blocked()


async def test_worker_learns_whether_it_may_ask(autojump_clock) -> None:
    async def fetch(hash: bytes) -> str:
        raise AssertionError("nothing was wanted")

    for way, may in ((fetch, True), (None, False)):
        async with hosted(way) as (_, links):
            hello = links[0].told[0]
            assert isinstance(hello, frames.Hello)
            assert hello.settings.can_fetch is may


async def test_few_are_fetched_at_once_and_each_is_answered(autojump_clock) -> None:
    running = most = 0

    async def fetch(hash: bytes) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        if hash == name(1):
            raise FetchFailed("nobody has it")
        return f"/adapters/{hash[-1]}"

    async with hosted(fetch) as (_, links):
        await wants(links[0], 3 * FETCHES_MAX)
        await trio.sleep(10)
        answers = links[0].answers()
        assert (most, len(answers)) == (FETCHES_MAX, 3 * FETCHES_MAX)
        assert frames.Missing(name(1), "nobody has it") in answers
        assert frames.Found(AdapterRef(name(2), "/adapters/2")) in answers


async def test_fetch_that_takes_too_long_is_given_up(autojump_clock) -> None:
    async def fetch(hash: bytes) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async with hosted(fetch) as (_, links):
        await wants(links[0], 1)
        await trio.sleep(FETCH_S - 1)
        assert links[0].answers() == []
        await trio.sleep(2)
        assert links[0].answers() == [frames.Missing(name(0), "took too long")]


async def test_next_worker_is_told_where_the_fetched_adapter_lies(autojump_clock) -> None:
    async def fetch(hash: bytes) -> str:
        await trio.sleep(0.1)
        return "/new"

    async with hosted(fetch) as (engine, links), trio.open_nursery() as nursery:
        nursery.start_soon(engine.load_adapter, AdapterRef(name(0), "/old"))
        await trio.testing.wait_all_tasks_blocked()
        load = links[0].told[-1]
        assert isinstance(load, frames.Load)
        links[0].say.send_nowait(frames.Loaded(load.call, AdapterInfo(name(0), 8, 8, (), 1, "ram")))
        await wants(links[0], 1)
        await trio.sleep(1)
        await wants(links[0], 1)  # and this fetch is cut short by the worker's end
        links[0].kill()
        await trio.sleep(2)
        assert links[0].answers() == [frames.Found(AdapterRef(name(0), "/new"))]
        assert links[1].told[1] == frames.Register(AdapterRef(name(0), "/new"))
        assert links[1].answers() == []


async def test_lost_streams_are_counted_beside_the_workers_own_ends(autojump_clock) -> None:
    sampling = Sampling(4)
    async with hosted(None) as (engine, links), trio.open_nursery() as nursery:

        async def ask() -> None:
            async with engine.submit(GenRequest(b"id", b"t", None, (1,), sampling)) as stream:
                async for _ in stream:
                    pass

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        submit = links[0].told[-1]
        assert isinstance(submit, frames.Submit)
        links[0].say.send_nowait(frames.Done(submit.call))
        token = client.Token(0, 0, 5, b"x", -0.1)
        links[0].say.send_nowait(frames.Tokens(((b"id", token),)))
        await trio.testing.wait_all_tasks_blocked()
        links[0].kill()
        await trio.testing.wait_all_tasks_blocked()
        assert engine.stats().endings == {"stop": 2, "engine_lost": 1}
