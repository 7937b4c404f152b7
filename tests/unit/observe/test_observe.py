"""Logs: fields, levels by part, no locals in traces; errors that are contained and counted."""

import json

import pytest
import trio

from node import observe

Capture = pytest.CaptureFixture[str]


def logged(capsys: Capture) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_event_is_a_phrase_with_fields(capsys: Capture) -> None:
    observe.set_up("info", "json", {})
    observe.get_log("peering").info("block committed", height=7, block_id=b"\xab\xcd")
    (event,) = logged(capsys)
    assert event.pop("ts")
    assert event == {
        "event": "block committed",
        "level": "info",
        "part": "peering",
        "height": 7,
        "block_id": "abcd",
    }


def test_part_has_its_own_level(capsys: Capture) -> None:
    observe.set_up("warning", "json", {"p2p": "debug"})
    for part in ("p2p", "web"):
        observe.get_log(part).debug("seen")
        observe.get_log(part).warning("bad")
    events = [(event["part"], event["event"]) for event in logged(capsys)]
    assert events == [("p2p", "seen"), ("p2p", "bad"), ("web", "bad")]


def test_unknown_level_is_refused() -> None:
    with pytest.raises(KeyError):
        observe.set_up("loud", "json", {})


async def fail(secret: str) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("form", ["text", "json"])
async def test_contained_error_is_counted_and_its_trace_shows_no_locals(
    capsys: Capture, form: observe.Format
) -> None:
    """A local may be a prompt or a key."""
    observe.set_up("info", form, {})
    before = observe.statistics().get("here", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observe.contained, "here", fail, "hush-hush")
        nursery.start_soon(trio.lowlevel.checkpoint)
    told = capsys.readouterr().err
    assert observe.statistics()["here"] == before + 1
    assert "boom" in told
    assert "hush-hush" not in told


async def test_cancel_passes_through_containment() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await observe.contained("there", trio.sleep, 1.0)
    assert scope.cancelled_caught
    assert "there" not in observe.statistics()


def test_a_long_job_is_told_of_each_ten_seconds_and_not_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, told = 100.0, []
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    tell = observe.seldom(lambda done, of: told.append((done, of)))
    for second in range(25):
        now_s = 100.0 + second
        tell(second, of=25)
    assert told == [(10, 25), (20, 25)]
