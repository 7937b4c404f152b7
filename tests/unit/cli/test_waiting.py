"""Who waits in vain is told so at once; who waits for a block, how it stands."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit.cli.calls import Capture, asked, told
from unit.web.behind import ALICE, Behind

from consensus.primitives.errors import Invalid
from node.cli import waiting
from node.cli.waiting import OLD_S, telling
from node.ledger.addresses import account_of, account_text
from node.web.ask import Unreachable


class Standing:
    """A frame and its node: what it says of itself, look by look; then it is silent."""

    def __init__(self, *peers: int, validators: int = 4, age_s: int = 0) -> None:
        self.peers, self.validators, self.is_out = list(peers), validators, threading.Event()
        self.time_ms = time.time_ns() // 10**6 - age_s * 1_000

    def daemon(self, *, timeout_s: float) -> Any:
        return self

    def get(self, route: str) -> dict[str, Any]:
        assert route == "/status"
        if not self.peers:
            self.is_out.set()
            raise Unreachable(Path("sock"), "gone")
        told = {"peers": self.peers.pop(0), "validators": self.validators}
        return {**told, "height": 7, "time_ms": self.time_ms}


def heard(standing: Standing, capsys: Capture) -> list[str]:
    with telling(standing):  # type: ignore[arg-type]  # all of Frame that is used
        assert standing.is_out.wait(10)
    return capsys.readouterr().err.splitlines()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.001)


def test_node_without_peers_is_told_at_once(capsys: Capture) -> None:
    (line,) = heard(Standing(0), capsys)
    assert "0 s: this node has no peers" in line


def test_lone_validator_needs_no_peers(capsys: Capture) -> None:
    lines = heard(Standing(0, 0, 0, validators=1), capsys)
    assert not [line for line in lines if "has no peers" in line]


def test_progress_tells_the_height_and_how_old_its_block_is(capsys: Capture) -> None:
    lines = heard(Standing(3, 3), capsys)
    assert "the newest block here, 7, is " in lines[-1]
    assert "3 peers" in lines[-1]


def test_network_that_stands_still_is_told_at_once_and_one_that_is_well_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 60.0)

    def first(standing: Standing) -> str:
        came, told = threading.Event(), standing.get("/status")

        def look(node: object) -> dict[str, Any]:
            return told

        monkeypatch.setattr(waiting, "_look", look)
        monkeypatch.setattr(came, "wait", lambda seconds: True)
        waiting._tell(standing, came, time.monotonic())  # type: ignore[arg-type]  # not asked
        return capsys.readouterr().err

    assert first(Standing(3, age_s=OLD_S - 5)) == ""
    assert "s old" in first(Standing(3, age_s=OLD_S))


def test_nothing_is_told_once_it_has_come_or_failed(capsys: Capture) -> None:
    before = threading.active_count()
    with telling(Standing(*[3] * 1_000_000)) as came:  # type: ignore[arg-type]  # as above
        came.set()
    with pytest.raises(ZeroDivisionError), telling(Standing(*[3] * 1_000_000)):  # type: ignore[arg-type]  # as above
        raise ZeroDivisionError
    assert threading.active_count() == before


@pytest.mark.parametrize("words", [["infer", "contracts", "why?"], ["tx", "transfer", "TO", "1"]])
async def test_who_waits_for_others_is_told_how_they_stand(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(waiting, "_tell", lambda *given: calls.append(given))
    spending = account_of(told(capsys, home, "keys", "show", "spending")["account"])
    words = [account_text(ALICE) if word == "TO" else word for word in words]
    if words[0] == "tx":
        words += ["--from", "spending"]
    await asked(capsys, Behind(accounts={spending}), home, *words)
    assert len(calls) == 1


async def test_refusal_brings_its_mend(home: Path, capsys: Capture) -> None:
    refusal = Invalid("payer.not_settled", transaction=b"\1", mend="olnode status")
    behind = Behind(refuse_at=0, refusal=refusal)
    answer = await asked(capsys, behind, home, "infer", "contracts", "why?", status=1)
    assert (answer["what"], answer["mend"]) == (
        "payer.not_settled (transaction=01)",
        "olnode status",
    )
