"""`olnode light`, and `olnode verify` from what it kept: offline, without a genesis to believe."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_kit import party
from chain_kit import devnet
from light_kit import FOUR, LightChain, light_block
from stored_kit import Told

from consensus.attacks import LightClientAttack
from node.cli.main import run
from node.following import Attack, Followed
from node.ledger.genesis import encode_genesis
from node.light import trust_options
from node.lightclient import LightClient, Look
from node.storage.lightfile import LightFile
from node.web.proving import receipt_file
from p2p.peers import peer_id_text

Capture = pytest.CaptureFixture[str]
SCHEMAS = json.loads((Path(__file__).parents[2] / "vectors/cli/schemas.json").read_text())
ADDRESS = f"/ip4/127.0.0.1/tcp/7017/p2p/{peer_id_text(party('a full node').key)}"
PERIOD_MS = trust_options(devnet()).period_ms


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    made = Told(tmp_path_factory.mktemp("home"))
    for _ in range(3):
        made.made.block()
    yield made
    made.made.chain.close()


@pytest.fixture
def home(told: Told, tmp_path: Path, capsys: Capture) -> Path:
    """A devnet home of the chain, and a file that the newest look left."""
    (tmp_path / "genesis").write_bytes(encode_genesis(told.made.genesis))
    home = tmp_path / "home"
    words = ["init", "--home", str(home), "--profile", "devnet"]
    assert run([*words, "--genesis", str(tmp_path / "genesis")]) == 0
    capsys.readouterr()
    return home


def keep(told: Told, home: Path, *heights: int) -> LightFile:
    store = LightFile(home, told.made.chain_id)
    blocks = [told.view().light_block(height) for height in heights]
    store.save([block for block in blocks if block is not None])
    return store


@pytest.fixture
def in_time(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day on which the chain's blocks were made."""
    now_ms = told.view().tip.time_ms + 1_000
    monkeypatch.setattr("node.cli.trust.now_ms", lambda: now_ms)


def verified(told: Told, home: Path, *words: str, trusted: int | None = None) -> int:
    raw = receipt_file(told.view(), told.receipt, trusted)
    assert raw is not None
    (home / "proof").write_bytes(raw)
    return run(["--home", str(home), "verify", str(home / "proof"), *words])


@pytest.mark.usefixtures("in_time")
def test_certificate_between_two_followed_blocks_is_enough(told: Told, home: Path) -> None:
    keep(told, home, 1, told.view().height)
    assert verified(told, home) == 0


def test_expired_set_vouches_for_nothing_but_history_does(
    told: Told, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One followed header proves any older receipt, for ever; signatures of those who may have
    left prove nothing."""
    newest = told.view().height
    keep(told, home, 1, newest)
    first = told.view().get_header(1).time_ms
    monkeypatch.setattr("node.cli.trust.now_ms", lambda: first + PERIOD_MS)
    assert verified(told, home) == 2
    assert "under the trusted block" in capsys.readouterr().err
    assert verified(told, home, trusted=newest) == 0
    assert "it stands in the history" in capsys.readouterr().out


@pytest.mark.usefixtures("in_time")
def test_proof_above_what_was_followed_waits_for_another_look(
    told: Told, home: Path, capsys: Capture
) -> None:
    keep(told, home, 1, 2)
    assert verified(told, home) == 2
    assert "olnode light --once" in capsys.readouterr().err


@pytest.mark.usefixtures("in_time")
def test_proof_of_a_followed_block_needs_no_signatures(told: Told, home: Path) -> None:
    keep(told, home, told.paid_height)
    assert verified(told, home) == 0


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("place", [40, 200, 700])
def test_changed_proof_is_false_and_not_unknown(told: Told, home: Path, place: int) -> None:
    keep(told, home, 1, told.view().height)
    assert verified(told, home) == 0
    raw = bytearray((home / "proof").read_bytes())
    raw[place] ^= 1
    (home / "proof").write_bytes(raw)
    assert run(["--home", str(home), "verify", str(home / "proof")]) == 6


def test_torn_store_is_damage_and_not_a_verdict(told: Told, home: Path, capsys: Capture) -> None:
    store = keep(told, home, 1, 2)
    store.path.write_bytes(store.path.read_bytes()[:-1])
    assert verified(told, home) == 7
    assert "--trust" in capsys.readouterr().err


def test_named_trust_wins_over_the_store(told: Told, home: Path) -> None:
    store = keep(told, home, 1, 2)
    block_id = told.view().get_header(told.paid_height).block_id().hex()
    assert verified(told, home, "--trust", f"{told.paid_height}:{block_id}") == 0
    assert verified(told, home, "--genesis", str(home / "genesis")) == 0
    store.path.unlink()
    assert verified(told, home) == 0, "without a store the home's genesis is believed"


# --- the command itself


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),  # nobody to ask
        (["--witness", "/ip4/127.0.0.1/tcp/7017"], 2),  # no peer id
        (["--witness", "127.0.0.1:7017"], 2),
        (["--witness", ADDRESS, "--trust", "7"], 2),
        (["--witness", ADDRESS, "--trust", "7:" + "zz" * 32], 2),
    ],
)
def test_call_that_cannot_be_meant_is_a_usage_fault(
    home: Path, words: list[str], status: int
) -> None:
    assert run(["--home", str(home), "light", "--once", *words]) == status


def test_home_must_be_there(tmp_path: Path) -> None:
    assert run(["--home", str(tmp_path / "none"), "light", "--witness", ADDRESS]) == 3


CHAIN = LightChain(5)
LIE = light_block(CHAIN.at(5).header._replace(params_hash=b"\7" * 32), FOUR)
ATTACK = Attack(
    "one", "two", LightClientAttack(1, CHAIN.at(5)), LightClientAttack(1, LIE), ("one", "two")
)
QUIET = Followed((CHAIN.at(5),), "one", ("two", "three"), (), ())
ATTACKED = Followed((), "one", (), (("four", "silent"),), ("take care",), (ATTACK,))


def looked(monkeypatch: pytest.MonkeyPatch, followed: Followed) -> list[Any]:
    """`olnode light` without a network: the look that it would have got."""
    given: list[Any] = []

    async def stand_in(self: LightClient, tell: Any, *, once: bool) -> None:
        given.append((self, once))
        tell(Look(CHAIN.at(5), 2, followed))

    monkeypatch.setattr(LightClient, "run", stand_in)
    return given


def test_result_goes_to_stdout_and_the_schema_holds(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given = looked(monkeypatch, QUIET)
    words = ["--home", str(home), "-o", "json", "light", "--witness", ADDRESS, "--once"]
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(SCHEMAS[answer["schema"]]) <= answer.keys()
    assert (answer["height"], answer["added"], answer["confirmed"]) == (5, 1, ["two", "three"])
    assert [once for _, once in given] == [True]


def test_other_address_of_a_peer_that_leads_is_told_to_be_no_witness(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    looked(monkeypatch, QUIET)
    monkeypatch.setenv("OLNODE_P2P__BOOTSTRAP", json.dumps([ADDRESS]))
    other = ADDRESS.replace("7017", "7018")
    stranger = f"/ip4/127.0.0.1/tcp/7018/p2p/{peer_id_text(party('another').key)}"
    for witness, number in ((other, 1), (stranger, 0)):
        assert run(["--home", str(home), "light", "--witness", witness, "--once"]) == 0
        assert capsys.readouterr().err.count("no witness beside it") == number


def test_attack_is_exit_6_and_names_both_sides(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    looked(monkeypatch, ATTACKED)
    assert run(["--home", str(home), "light", "--witness", ADDRESS]) == 6
    out, err = capsys.readouterr()
    assert out.startswith("height 5")
    assert "ATTACK: one and two" in err
    assert "dropped four: silent" in err
    assert "warning: take care" in err


def test_trust_of_the_config_is_used_where_none_is_named(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "genesis").write_bytes(encode_genesis(told.made.genesis))
    given, home = looked(monkeypatch, QUIET), tmp_path / "trusting"
    words = ["init", "--home", str(home), "--profile", "devnet", "--trust", "3:" + "ab" * 32]
    assert run([*words, "--genesis", str(tmp_path / "genesis")]) == 0
    assert run(["--home", str(home), "light", "--witness", ADDRESS]) == 0
    assert (
        run(["--home", str(home), "light", "--witness", ADDRESS, "--trust", "4:" + "cd" * 32]) == 0
    )
    assert [client._trust for client, _ in given] == [(3, b"\xab" * 32), (4, b"\xcd" * 32)]
