"""The engine as a thread and as a process: same answers; a lost worker ends or repeats streams."""

import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.serving import client, frames
from node.serving.client import EngineClient
from node.serving.engine import (
    AdapterRef,
    BadSampling,
    EngineError,
    EngineLost,
    EngineSettings,
    Finish,
    GenRequest,
    OutOfMemory,
    Sampling,
    ScoreItem,
    Token,
    UnknownAdapter,
    Unsupported,
)
from node.serving.worker import ThreadEngine, WorkerEngine

pytestmark = pytest.mark.ml

MakeAdapter = Callable[..., tuple[bytes, str]]


@asynccontextmanager
async def running(engine: EngineClient) -> AsyncIterator[EngineClient]:
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        await engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()


def request(number: int, adapter: bytes | None = None, tokens: int = 8) -> GenRequest:
    rng = random.Random(number)
    prompt = tuple(rng.randrange(256) for _ in range(6))
    sampling = Sampling(max_tokens=tokens, temperature_milli=700, flags=1)
    seed = number.to_bytes(32, "big")
    return GenRequest(number.to_bytes(16, "big"), b"t", adapter, prompt, sampling, seed)


async def collect(engine: EngineClient, each: GenRequest) -> tuple[list[int], Finish]:
    ids = []
    async with engine.submit(each) as stream:
        async for event in stream:
            if isinstance(event, Finish):
                return ids, event
            ids.append(event.id)
    raise AssertionError("a stream ends with a Finish")


async def collect_all(
    engine: EngineClient, requests: list[GenRequest]
) -> dict[bytes, tuple[list[int], Finish]]:
    results = {}

    async def one(each: GenRequest) -> None:
        results[each.id] = await collect(engine, each)

    async with trio.open_nursery() as nursery:
        for each in requests:
            nursery.start_soon(one, each)
    return results


def settings(base: Path) -> EngineSettings:
    return EngineSettings(str(base), rows=16, threads=1)


async def test_thread_and_process_give_the_same_mixed_batch(
    tiny_base: Path, make_adapter: MakeAdapter
) -> None:
    made = [make_adapter(number, (8, 16)[number % 2]) for number in range(8)]
    requests = [request(number, made[number % 8][0]) for number in range(16)]
    answers = []
    for engine in (ThreadEngine(settings(tiny_base)), WorkerEngine(settings(tiny_base))):
        async with running(engine):
            for hash, folder in made:
                assert (await engine.load_adapter(AdapterRef(hash, folder))).hash == hash
            answers.append(await collect_all(engine, requests))
            await assert_runs_again(engine, requests[2], answers[-1][requests[2].id][0])
            with pytest.raises(UnknownAdapter):
                await collect(engine, request(99, bytes(32)))
            assert engine.info.can == ("exact_sampling", "hidden", "gradients")
    # Who joins in which step differs, so evidence differs in its last digits; tokens do not.
    for each in requests:
        (ids, finish), (other_ids, other) = answers[0][each.id], answers[1][each.id]
        assert (ids, finish.reasons) == (other_ids, other.reasons)


async def test_device_that_torch_cannot_use_is_told_at_the_first_start(tiny_base: Path) -> None:
    """As a GPU newer than this torch: there, but of no use. No worker is started again for it."""
    starts = []

    def make(settings: EngineSettings):
        starts.append(settings.device)
        raise RuntimeError("CUDA error: no kernel image is available")

    engine = ThreadEngine(settings(tiny_base), make=make)
    with pytest.raises(EngineError, match="no kernel image"):
        await engine.run()
    assert len(starts) == 1


async def test_out_of_memory_the_next_worker_has_half_of_the_rows(tiny_base, monkeypatch) -> None:
    """The request, which was shown nothing yet, is answered by that one."""
    import torch

    from node.serving.worker import make_core

    def make(settings: EngineSettings):
        core = make_core(settings)
        if core.info.rows > 2:

            def full() -> None:
                raise torch.OutOfMemoryError("CUDA out of memory.")

            monkeypatch.setattr(core, "_decode", full)
            monkeypatch.setattr(core, "_release_parked", full)
        return core

    async with running(ThreadEngine(replace(settings(tiny_base), rows=4), make=make)) as engine:
        assert engine.info.rows == 4
        ids, finish = await collect(engine, request(5))
        assert (engine.info.rows, engine.stats().restarts) == (2, 1)
        assert finish.reasons == ("length",)
        assert len(ids) == finish.choices[0].answer_tokens


async def test_base_that_memory_does_not_do_for_is_told_at_the_first_start(
    tiny_base, monkeypatch
) -> None:
    import torch

    def full(settings: EngineSettings) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("node.serving.slots.SlotCore", full)
    with pytest.raises(OutOfMemory):
        await ThreadEngine(settings(tiny_base)).run()


async def assert_runs_again(engine: EngineClient, each: GenRequest, ids: list[int]) -> None:
    """Answers are run again, and adapters told of, through the same frames."""
    item = ScoreItem(each.adapter, each.prompt, tuple(ids), each.sampling, each.seed)
    right, wrong = await engine.score([item, replace(item, seed=bytes(32))])
    assert max(right.margins) < 1e-3 < max(wrong.margins)
    assert await engine.score([]) == []
    with pytest.raises(BadSampling):
        await engine.score([replace(item, prompt=())])
    (info,) = [info for info in await engine.adapters() if info.hash == each.adapter]
    assert (info.tier, info.rank) == ("slot", 8)


async def test_leaving_a_stream_frees_its_row(tiny_base: Path) -> None:
    async with running(ThreadEngine(settings(tiny_base))) as engine:
        async with engine.submit(request(3, tokens=240)) as stream:
            assert isinstance(await anext(aiter(stream)), Token)
        with trio.fail_after(5):
            while engine.stats().running or not engine.stats().cancelled:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_seed_revealed_later_gives_the_same_answer(tiny_base: Path) -> None:
    async with running(ThreadEngine(settings(tiny_base))) as engine:
        expected, _ = await collect(engine, request(4))
        whole = request(4)
        late = GenRequest(b"l" * 16, b"t", None, whole.prompt, whole.sampling)
        async with engine.submit(late) as stream:
            assert whole.seed is not None
            stream.reveal(whole.seed)
            ids = [event.id async for event in stream if isinstance(event, Token)]
        assert ids == expected


ORPHAN = """
import os, signal, sys, trio
from node.serving.engine import EngineSettings
from node.serving.worker import WorkerEngine

async def main():
    engine = WorkerEngine(EngineSettings(sys.argv[1], threads=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        print(engine._link.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_worker_dies_with_a_killed_daemon(tiny_base: Path) -> None:
    result = await trio.run_process(
        [sys.executable, "-c", ORPHAN, str(tiny_base)], capture_stdout=True, check=False
    )
    worker = int(result.stdout)
    with trio.fail_after(2):
        while is_running(worker):  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("kind", [ThreadEngine, WorkerEngine])
async def test_base_that_cannot_be_loaded_ends_the_start_with_its_reason(
    kind: type[EngineClient], tmp_path: Path
) -> None:
    with pytest.raises(Unsupported):
        await kind(settings(tmp_path)).run()  # type: ignore[call-arg]


# --- the client alone, over a link that the test plays


class PlayedLink:
    """A worker made of a list: what was sent, and a channel for what it says."""

    def __init__(self) -> None:
        self.sent: list[frames.ToWorker] = []
        self.say, self.heard = trio.open_memory_channel[frames.FromWorker](100)

    def send(self, frame: frames.ToWorker) -> None:
        self.sent.append(frame)

    async def receive(self) -> frames.FromWorker:
        try:
            return await self.heard.receive()
        except trio.EndOfChannel:
            raise client.LinkLost from None

    def kill(self) -> None:
        self.say.close()


class PlayedEngine(EngineClient):
    """Each new worker is a PlayedLink that is ready at once."""

    def __init__(self) -> None:
        self.links: list[PlayedLink] = []

        @asynccontextmanager
        async def open_link() -> AsyncIterator[PlayedLink]:
            link = PlayedLink()
            self.links.append(link)
            info = client.EngineInfo("torch", b"", "fp32", "cpu", 1, 1, 1, 1, (), b"")
            link.say.send_nowait(frames.Ready(info))
            stats = client.EngineStats(*([0] * 15))
            link.say.send_nowait(frames.Stats(stats))
            yield link

        super().__init__(EngineSettings("nowhere"), open_link)


def submits(link: PlayedLink) -> list[frames.Submit]:
    return [frame for frame in link.sent if isinstance(frame, frames.Submit)]


async def answer(engine: PlayedEngine, each: GenRequest, into: list[object]) -> None:
    try:
        into.append((await collect(engine, each))[1].reasons)
    except EngineLost as error:
        into.append(error.code)


async def test_stream_without_a_token_is_asked_again_once(autojump_clock) -> None:
    engine, into = PlayedEngine(), []
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(answer, engine, request(1), into)
        await trio.testing.wait_all_tasks_blocked()
        engine.links[0].say.send_nowait(frames.Done(submits(engine.links[0])[0].call))
        await trio.testing.wait_all_tasks_blocked()
        engine.links[0].kill()
        await trio.sleep(2)
        assert [frame.request.id for frame in submits(engine.links[1])] == [request(1).id]
        engine.links[1].kill()
        await trio.sleep(3)
        assert into == [("engine_lost",)]
        assert submits(engine.links[2]) == []
        nursery.cancel_scope.cancel()


async def test_five_losses_in_ten_minutes_and_the_engine_is_down(autojump_clock) -> None:
    engine, into = PlayedEngine(), []
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        for _ in range(5):
            engine.links[-1].kill()
            await trio.sleep(20)
        assert engine.state == "down"
        await answer(engine, request(1), into)
        assert into == ["engine.lost"]
        nursery.cancel_scope.cancel()


async def test_silent_worker_with_live_streams_is_killed(autojump_clock) -> None:
    engine, into = PlayedEngine(), []
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await trio.sleep(120)
        assert len(engine.links) == 1  # silence alone is no fault
        nursery.start_soon(answer, engine, request(1), into)
        await trio.sleep(client.STALL_S + 5)
        assert len(engine.links) == 2
        nursery.cancel_scope.cancel()


def test_random_bytes_are_bad_frames_and_nothing_else() -> None:
    rng = random.Random(1)
    whole = frames.encode_frame(frames.Submit(1, request(1)))[4:]
    for _ in range(2_000):
        raw = bytearray(whole if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 60)))
        raw[rng.randrange(len(raw))] = rng.randrange(256)
        for decode in (frames.decode_to_worker, frames.decode_from_worker):
            try:
                decode(bytes(raw))
            except frames.BadFrame:
                continue


def test_every_error_travels_with_code_and_facts() -> None:
    from node.serving.engine import ERRORS

    for kind in ERRORS.values():
        frame = frames.decode_from_worker(
            frames.encode_frame(frames.failure(3, kind(limit=5, key="x")))[4:]
        )
        assert isinstance(frame, frames.Failed)
        error = frames.error_of(frame)
        assert (type(error), error.facts) == (kind, {"limit": 5, "key": "x"})
