"""The story over fake parts: a known home is gone on with, a reset begins anew, an end is orderly.

The daemons are real processes that only sleep; markets, publishers and trades note that they were
called.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from consensus.primitives.errors import Invalid
from node.devnet import story
from node.devnet.children import Child, ChildFailed
from node.devnet.folder import MARK_FILE
from node.devnet.people import PEOPLE_FILE, settled
from node.devnet.telling import Wish
from node.home import HomeError
from node.training.demo_texts import DOMAINS


class Told:
    """A teller that keeps every line; `reached` is set by the one with the label `at`."""

    def __init__(self, at: str = "") -> None:
        self.lines: list[tuple[str, str]] = []
        self.reached = trio.Event()
        self._at = at

    def say(self, label: str, text: str) -> None:
        self.lines.append((label, text))
        if label == self._at:
            self.reached.set()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        pass


class Fakes:
    """What the story's parts did, in order; `fails_at` names one that raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.children: list[Child] = []
        self.fails_at = ""

    async def note(self, name: str, *rest: Any, **more: Any) -> int:
        await trio.lowlevel.checkpoint()
        self.calls.append(name)
        if name == self.fails_at:
            raise Invalid("test.failed", at=name)
        return 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    made = Fakes()

    class Part:
        """Every method of every part: it notes its name."""

        def __init__(self, *parts: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            async def method(*rest: Any, **more: Any) -> Any:
                await made.note(name)
                return dict.fromkeys(("a", "b"), 1) if name == "create_datanets" else proved

            return method

        def example(self) -> str:
            return 'a "why?"'

    proved = SimpleNamespace(size=1, took_ms=1.0)
    start = Child.start

    def start_and_note(child: Child) -> None:
        made.children.append(child)
        start(child)

    async def answering(child: Child) -> None:
        await trio.lowlevel.checkpoint()

    goods = SimpleNamespace(goods=[SimpleNamespace(name="a"), SimpleNamespace(name="b")])
    monkeypatch.setattr(Child, "command", property(lambda child: ["sleep", "600"]))
    monkeypatch.setattr(Child, "start", start_and_note)
    monkeypatch.setattr(story, "wait_answering", answering)
    for name in ("Market", "Checker", "Publisher", "Trade"):
        monkeypatch.setattr(story, name, Part)
    monkeypatch.setattr(Part, "do", lambda *_: made.note("do"), raising=False)
    monkeypatch.setattr(story, "make_goods", lambda *_: goods)
    monkeypatch.setattr(story, "find_spec", lambda name: object())
    yield made
    for child in made.children:
        child.kill()


def wish(home: Path, **changes: Any) -> Wish:
    plain = {"once": False, "keep": False, "reset": False, "with_models": True}
    return Wish(home=home, traffic_per_s=0.0, **{**plain, **changes})


async def told_until(label: str, one: Wish) -> Told:
    """Run until a line with that label is said, then cancel as Ctrl-C does."""
    teller = Told(label)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.run, one, teller)
            await teller.reached.wait()
            nursery.cancel_scope.cancel()
    return teller


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def are_gone(children: list[Child]) -> bool:
    return all(child.process.returncode is not None for child in children)


async def test_known_home_goes_on_with_the_same_chain(fakes: Fakes, tmp_path: Path) -> None:
    first = await told_until("look", wish(tmp_path))
    genesis = (tmp_path / "genesis").read_bytes()
    again = await told_until("look", wish(tmp_path))
    assert (tmp_path / "genesis").read_bytes() == genesis
    assert [label for label, _ in first.lines] == [label for label, _ in again.lines]
    assert first.lines[0] == again.lines[0], "chain and home"
    assert len(fakes.children) == 10
    assert are_gone(fakes.children)


async def test_what_is_not_published_is_published_at_a_later_start(
    fakes: Fakes, tmp_path: Path
) -> None:
    """A first start without models once made every later one fail in its first question."""
    await told_until("first block", wish(tmp_path, with_models=False))
    assert "publish" not in fakes.calls
    fakes.fails_at = "contribute"
    failed = await story.run(wish(tmp_path), Told())
    assert (failed.stage, failed.failure) == (
        "publishing Datanets and models",
        "test.failed (at=contribute)",
    )
    fakes.fails_at, fakes.calls = "", []
    await told_until("look", wish(tmp_path))
    assert fakes.calls.count("publish") == 2
    assert fakes.calls.index("publish") < fakes.calls.index("run")


async def test_home_made_without_models_has_providers_for_them(
    fakes: Fakes, tmp_path: Path
) -> None:
    await told_until("first block", wish(tmp_path, with_models=False))
    config = (tmp_path / "n0" / "config.toml").read_text()
    assert all(domain.name in config for domain in DOMAINS)


async def test_reset_begins_with_new_people_and_a_new_chain(fakes: Fakes, tmp_path: Path) -> None:
    home = tmp_path / "net"
    await told_until("look", wish(home))
    before = settled(home)
    (home / "proofs").mkdir()
    await told_until("look", wish(home, reset=True))
    after = settled(home)
    assert before is not None
    assert after is not None
    assert before.genesis != after.genesis
    assert before.people.faucet != after.people.faucet
    assert not (home / "proofs").exists()


async def test_half_made_home_is_made_anew(fakes: Fakes, tmp_path: Path) -> None:
    await told_until("look", wish(tmp_path))
    (tmp_path / PEOPLE_FILE).unlink()
    await told_until("look", wish(tmp_path))
    assert settled(tmp_path) is not None


async def test_folder_of_somebody_else_is_refused_and_left_alone(
    fakes: Fakes, tmp_path: Path
) -> None:
    (tmp_path / "thesis").write_text("mine")
    for reset in (False, True):
        with pytest.raises(HomeError):
            await story.run(wish(tmp_path, reset=reset), Told())
    assert names(tmp_path) == ["thesis"]
    assert fakes.children == []


async def test_story_that_is_told_once_ends_in_order_and_leaves_nothing(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story.tempfile, "tempdir", str(tmp_path))
    ending = await story.run(wish(tmp_path / "unused", once=True), Told())
    assert ending.failure == ""
    assert fakes.calls[-2:] == ["run", "prove_credit"]
    assert are_gone(fakes.children)
    assert names(tmp_path) == []


@pytest.mark.parametrize("keep", [False, True])
async def test_home_of_a_failed_story_is_kept(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(story.tempfile, "tempdir", str(tmp_path))
    fakes.fails_at = "verify_account"
    ending = await story.run(wish(tmp_path / "unused", once=True, keep=keep), Told())
    assert (ending.stage, ending.failure) == (
        "proving a balance",
        "test.failed (at=verify_account)",
    )
    assert (Path(ending.facts["home"]) / MARK_FILE).is_file()
    assert are_gone(fakes.children)


async def test_daemon_that_dies_too_often_ends_the_story_with_its_log(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(child: Child) -> None:
        raise ChildFailed(child.name, "did not answer", "last words")

    monkeypatch.setattr(story, "wait_answering", silent)
    ending = await story.run(wish(tmp_path), Told())
    assert (ending.failure, ending.log) == ("n0: did not answer", "last words")
    assert are_gone(fakes.children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_ends_it_in_order(fakes: Fakes, tmp_path: Path, number: int) -> None:
    """A supervisor's stop or a closed terminal once left five daemons behind."""
    teller, endings = Told("look"), []

    async def run() -> None:
        endings.append(await story.run(wish(tmp_path), teller))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await teller.reached.wait()
            os.kill(os.getpid(), number)
    (ending,) = endings
    assert (ending.signal, ending.failure) == (number, "")
    assert are_gone(fakes.children)
