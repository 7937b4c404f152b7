"""Commands on a real home and a real socket; behind the socket stands a table, no chain."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from unit.cli.calls import ACCEPTED, GENESIS, SCHEMAS, Capture, asked, ledger_of, told
from unit.web.behind import ALICE, BIG, EARNED, ID, STATUS, Behind, served

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.cli.earnings import BY
from node.cli.main import run
from node.ledger import tables
from node.ledger.addresses import account_of, account_text
from node.ledger.wire.transactions import Transfer, decode_transaction
from node.web.earnings import GROUPS
from node.web.ledger import EarningsQuery


def test_init_makes_a_home_that_only_its_owner_reads(home: Path) -> None:
    assert (home / "genesis").read_bytes() == GENESIS
    assert (home / "version").read_text() == "1\n"
    for path in [home, *home.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert {path.stem for path in (home / "keystore").iterdir()} == {
        "node",
        "validator",
        "spending",
    }
    assert (home / "signer").stat().st_size > 0


def test_init_writes_over_nothing(home: Path, tmp_path: Path, capsys: Capture) -> None:
    before = (home / "keystore/node.json").read_bytes()
    again = told(
        capsys,
        home,
        "init",
        "--genesis",
        str(tmp_path / "genesis"),
        "--profile",
        "devnet",
        status=1,
    )
    assert "not empty" in again["what"]
    assert (home / "keystore/node.json").read_bytes() == before


@pytest.mark.parametrize("raw", [b"", b"\x90", GENESIS[:-1], GENESIS + b"\0"])
def test_init_refuses_what_is_no_genesis(raw: bytes, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "genesis").write_bytes(raw)
    words = ["init", "--genesis", str(tmp_path / "genesis"), "--profile", "devnet"]
    assert "is no genesis" in told(capsys, tmp_path / "home", *words, status=2)["what"]
    assert not (tmp_path / "home").exists()


def test_keys_travel_sealed_and_are_listed(tmp_path: Path, home: Path, capsys: Capture) -> None:
    made = told(capsys, home, "keys", "add", "alice")
    told(capsys, home, "keys", "export", "alice", str(tmp_path / "copy"))
    again = told(capsys, home, "keys", "import", str(tmp_path / "copy"), "--name", "bob", status=1)
    listed = told(capsys, home, "keys", "list")["keys"]
    assert "here already, as alice" in again["what"]
    assert {key["name"] for key in listed} == {"alice", "node", "spending", "validator"}
    assert told(capsys, home, "keys", "show", "alice")["account"] == made["account"]
    assert account_of(made["account"]).hex() == made["public_key"]


def test_secret_is_in_no_output(home: Path, capsys: Capture) -> None:
    secret = json.loads((home / "keystore/node.json").read_bytes())["box"]
    for words in (["list"], ["show", "node"]):
        for form in ("text", "json"):
            assert run(["--home", str(home), "-o", form, "keys", *words]) == 0
            assert secret not in "".join(capsys.readouterr())


def test_command_without_daemon_ends_as_unreachable(home: Path, capsys: Capture) -> None:
    answer = told(capsys, home, "status", status=4)
    assert (answer["exit"], answer["mend"]) == (4, "olnode start")


async def test_status_tells_grains_exactly(home: Path, capsys: Capture) -> None:
    answer = await asked(capsys, Behind(), home, "status")
    assert (answer["schema"], answer["supply"]) == ("olnode.status/1", str(BIG))


async def test_status_says_why_a_validator_is_silent(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_why = "the journal is damaged; mend: mv it aside"
    monkeypatch.setattr("unit.web.behind.STATUS", replace(STATUS, why_silent=told_why))
    async with served(Behind(), home / "run"):
        assert await trio.to_thread.run_sync(run, ["--home", str(home), "status"]) == 0
    assert told_why in capsys.readouterr().out


@pytest.mark.parametrize(("ready", "status"), [(True, 0), (False, 1)])
async def test_ready_is_told_by_the_exit_status_alone(
    home: Path, capsys: Capture, ready: bool, status: int
) -> None:
    behind = Behind(ready=ready)
    async with served(behind, home / "run"):
        words = ["--home", str(home), "status", "--ready"]
        assert await trio.to_thread.run_sync(run, words) == status
    assert capsys.readouterr().out == ""


async def test_answer_goes_to_stdout_and_its_receipt_to_stderr(
    home: Path, capsys: Capture, tmp_path: Path
) -> None:
    words = ["--home", str(home), "infer", "contracts", "why?", "--save", str(tmp_path / "proof")]
    async with served(Behind(), home / "run"):
        assert await trio.to_thread.run_sync(run, words) == 0
    out, err = capsys.readouterr()
    assert out == "two words\n"
    assert ID.hex() in err
    assert f"olnode verify {tmp_path / 'proof'} --genesis {home / 'genesis'}" in err
    assert (tmp_path / "proof").read_bytes() == b"\0proof"


async def test_what_opens_the_receipt_is_kept_for_its_owner_alone(
    home: Path, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "kept"
    words = ["--home", str(home), "infer", "contracts", "why?", "--keep", str(path)]
    async with served(Behind(), home / "run"):
        assert await trio.to_thread.run_sync(run, words) == 0
        assert f"olnode verify {ID.hex()} --explain --kept {path}" in capsys.readouterr().err
        words = ["--home", str(home), "verify", ID.hex(), "--explain", "--kept", str(path)]
        assert await trio.to_thread.run_sync(run, words) == 0
    assert capsys.readouterr().out.endswith("VERIFIED\n")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("option", ["--save", "--keep"])
async def test_nothing_is_paid_for_what_cannot_be_kept(
    home: Path, capsys: Capture, tmp_path: Path, option: str
) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    for path in (tmp_path / "mine", tmp_path / "none" / "file"):
        behind = Behind()
        words = ["infer", "contracts", "why?", option, str(path)]
        assert (await asked(capsys, behind, home, *words, status=2))["exit"] == 2
        assert behind.asked == []


async def test_fee_above_the_purse_ends_with_five(home: Path, capsys: Capture) -> None:
    behind = Behind(refuse_at=0, refusal=Invalid("payer.fee_max", need=2, have=1))
    answer = await asked(capsys, behind, home, "infer", "contracts", "why?", status=5)
    assert answer["code"] == "payer.fee_max"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("payer.unknown_model", 1),
        ("payer.no_provider", 1),
        ("payer.locked_max", 5),
        ("tx.cannot_pay", 5),
        ("payer.check_failed", 6),
    ],
)
@pytest.mark.parametrize("piece", [0, 1])
async def test_answer_that_is_not_bought_ends_with_its_status(
    home: Path, capsys: Capture, code: str, status: int, piece: int
) -> None:
    """Also midway, when a part of the answer has been shown."""
    behind = Behind(refuse_at=piece, refusal=Invalid(code))
    answer = await asked(capsys, behind, home, "infer", "contracts", "why?", status=status)
    assert (answer["schema"], answer["code"]) == ("olnode.error/1", code)


@pytest.mark.parametrize(
    "words", ["query receipt R", "verify R --explain", "earnings --explain R", "prove receipt R F"]
)
async def test_receipt_that_no_block_has_yet_is_not_called_unknown(
    home: Path, capsys: Capture, tmp_path: Path, words: str
) -> None:
    """Right after `infer` it is on its way: in a second the same command works."""
    names = {"R": "12" * 32, "F": str(tmp_path / "file")}
    answer = await asked(
        capsys, Behind(), home, *(names.get(word, word) for word in words.split()), status=1
    )
    assert answer["what"] == f"no block has settled receipt {names['R']}"
    assert "in some seconds" in answer["mend"]


@pytest.mark.parametrize("words", [["facts-1@1"], ["facts-1", "1"], ["1", "1"]])
async def test_version_is_proved_by_the_name_that_all_else_shows(
    home: Path, capsys: Capture, tmp_path: Path, words: list[str]
) -> None:
    behind = ledger_of()
    words = ["prove", "version", *words, str(tmp_path / "file")]
    await asked(capsys, behind, home, *words, status=1)
    assert behind.asked[-1] == (tables.VERSION.flat_key((1, 1)), None)


@pytest.mark.parametrize("words", [["m@1"], ["m", "1"], ["m", "x", "f"], ["m@1", "2", "f"]])
def test_version_that_cannot_be_meant_ends_with_two(
    home: Path, capsys: Capture, words: list[str]
) -> None:
    told(capsys, home, "prove", "version", *words, status=2)


async def test_answer_without_a_receipt_is_no_success(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the daemon dies midway: what was shown was not checked."""
    monkeypatch.setattr("node.web.ask.Node.stream", lambda *_: iter([{"text": "half"}]))
    answer = told(capsys, home, "infer", "contracts", "why?", status=1)
    assert (answer["what"], answer["mend"]) == (
        "the answer ended without a receipt",
        "olnode status",
    )


async def test_question_comes_from_stdin_and_options_as_they_are_meant(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long\nquestion"))
    behind = Behind()
    words = ["--max-tokens", "9", "--temperature", "0.7", "--seed", "3", "--max-fee", "0.05"]
    answer = await asked(capsys, behind, home, "infer", "contracts@1", "-", *words)
    (order,) = behind.asked
    assert (order.model, order.prompt, order.max_tokens) == ("contracts@1", "a long\nquestion", 9)
    assert (order.temperature_milli, order.seed, order.max_fee) == (700, 3, 50_000_000)
    assert answer["answer"] == "two words"


def test_proof_is_saved_over_nothing(home: Path, capsys: Capture, tmp_path: Path) -> None:
    """Refused before the answer is paid for."""
    (tmp_path / "proof").write_bytes(b"mine")
    words = ["infer", "contracts", "why?", "--save", str(tmp_path / "proof")]
    assert "exists" in told(capsys, home, *words, status=2)["what"]
    assert (tmp_path / "proof").read_bytes() == b"mine"


async def test_proof_that_has_no_folder_is_refused_before_anything_is_paid(
    home: Path, capsys: Capture, tmp_path: Path
) -> None:
    behind = Behind()
    words = ["infer", "contracts", "why?", "--save", str(tmp_path / "none" / "proof")]
    answer = await asked(capsys, behind, home, *words, status=2)
    assert "is no folder" in answer["what"]
    assert behind.asked == []


async def test_channel_is_closed_by_the_key_whose_wallet_opened_it(
    home: Path, capsys: Capture
) -> None:
    spending = told(capsys, home, "keys", "show", "spending")["account"]
    answer = await asked(capsys, Behind(), home, "tx", "close-channel", "ab" * 32, "--dry-run")
    assert answer["from"] == spending


@pytest.mark.parametrize(
    "words",
    [
        ["--max-tokens", "0"],
        ["--temperature", "2.1"],
        ["--temperature", "nan"],
        ["--seed", "-1"],
        ["--max-fee", "1e-3"],
    ],
)
def test_question_that_cannot_be_meant_is_a_usage_fault(
    home: Path, capsys: Capture, words: list[str]
) -> None:
    assert told(capsys, home, "infer", "contracts", "why?", *words, status=2)["exit"] == 2


@pytest.mark.parametrize(
    "trust", ["7", "x:" + "00" * 32, "1" * 19 + ":" + "00" * 32, ":", "7:" + "AB" * 32]
)
def test_init_refuses_a_trusted_block_that_is_none(
    tmp_path: Path, capsys: Capture, trust: str
) -> None:
    (tmp_path / "genesis").write_bytes(GENESIS)
    words = ["init", "--profile", "devnet", "--genesis", str(tmp_path / "genesis")]
    assert told(capsys, tmp_path / "home", *words, "--trust", trust, status=2)["exit"] == 2
    assert not (tmp_path / "home").exists()


def test_new_password_opens_and_the_old_one_does_not(tmp_path: Path, capsys: Capture) -> None:
    for name in ("genesis", "old", "new"):
        raw = GENESIS if name == "genesis" else f"{name} password\n".encode()
        (tmp_path / name).write_bytes(raw)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    sealed = tmp_path / "home"
    words = ["--profile", "testnet", "--genesis", str(tmp_path / "genesis")]
    told(capsys, sealed, "init", *words, "--password-file", old)
    change = ["keys", "passwd", "node", "--new-password-file"]
    told(capsys, sealed, *change, new, "--password-file", old)
    refused = told(capsys, sealed, *change, old, "--password-file", old, status=1)
    assert "password" in refused["what"]
    told(capsys, sealed, *change, old, "--password-file", new)


def test_keys_that_are_not_there_or_twice_are_refused(
    home: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert "nobody" in told(capsys, home, "keys", "show", "nobody", status=1)["what"]
    assert told(capsys, home, "keys", "add", "node", status=2)["mend"] == "olnode keys list"
    assert (
        "is no role" in told(capsys, home, "keys", "add", "x", "--role", "king", status=2)["what"]
    )
    (tmp_path / "junk").write_text("{}")
    before = sorted((home / "keystore").iterdir())
    told(capsys, home, "keys", "import", str(tmp_path / "junk"), status=1)
    told(capsys, home, "keys", "import", status=2)
    assert sorted((home / "keystore").iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ["close-channel", "AB" * 32],
        ["close-channel", "ab"],
        ["curate", "1", "perhaps"],
        ["curate", "0", "accept"],
        ["bond", account_text(ALICE), "1", "--role", "king"],
        ["show", "x"],
    ],
)
def test_transaction_that_cannot_be_meant_is_a_usage_fault(
    home: Path, capsys: Capture, words: list[str]
) -> None:
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (["config", "show"], "olnode.config.show/1"),
        (["config", "validate"], "olnode.config.validate/1"),
        (["version"], "olnode.version/1"),
    ],
)
def test_noun_without_a_daemon_has_its_schema(
    home: Path, capsys: Capture, words: list[str], schema: str
) -> None:
    assert told(capsys, home, *words)["schema"] == schema


@pytest.mark.parametrize("amount", ["-1", "1.0000000001", "1e9", "", "99999999999"])
def test_amount_that_is_no_amount_is_refused(home: Path, capsys: Capture, amount: str) -> None:
    words = ["tx", "transfer", account_text(ALICE), "--", amount]
    assert told(capsys, home, *words, status=2)["exit"] == 2


async def test_transfer_is_signed_by_the_operator_and_waited_for(
    home: Path, capsys: Capture
) -> None:
    made = told(capsys, home, "keys", "add", "alice")
    behind = Behind(accounts={account_of(made["account"]), ALICE})
    answer = await asked(capsys, behind, home, "tx", "transfer", account_text(ALICE), "1.5")
    tx = decode_transaction(behind.asked[-1])
    assert tx.payload == Transfer(ALICE, 1_500_000_000, b"")
    assert (tx.sender.hex(), tx.nonce) == (made["public_key"], 3)
    assert is_signed_by(tx.sender, signing_bytes(b"tx", ID, tx.body), tx.signature)
    assert tx.max_fee >= tx.weight * 100
    assert answer["state"] == "settled"


async def test_transaction_refused_by_a_rule_tells_its_code(home: Path, capsys: Capture) -> None:
    made = told(capsys, home, "keys", "add", "alice")
    behind = Behind(accounts={account_of(made["account"])}, settled_code=20)
    words = ["tx", "transfer", account_text(ALICE), "1"]
    answer = await asked(capsys, behind, home, *words, status=5)
    assert answer["code"] == "tx.insufficient"
    assert answer["mend"] == f"olnode query account {account_text(ALICE)}", "whose it is that lacks"


async def test_dry_run_signs_and_sends_nothing(home: Path, capsys: Capture) -> None:
    behind = Behind()
    words = ["tx", "transfer", account_text(ALICE), "1", "--dry-run", "--from", "node"]
    answer = await asked(capsys, behind, home, *words)
    assert behind.asked == []
    assert int(answer["max_fee"]) == 2 * int(answer["fee"]) > 0


async def test_offline_bytes_are_sent_later(home: Path, capsys: Capture, tmp_path: Path) -> None:
    made = told(capsys, home, "keys", "add", "alice")
    behind = Behind(accounts={account_of(made["account"])})
    file = str(tmp_path / "tx")
    words = ["tx", "transfer", account_text(ALICE), "1", "--offline", file]
    await asked(capsys, behind, home, *words)
    assert behind.asked == []
    await asked(capsys, Behind(), home, "tx", "send", file, "--no-wait")
    raw = await trio.Path(file).read_bytes()
    assert decode_transaction(raw).sender.hex() == made["public_key"]


async def test_spending_key_moves_no_bond(home: Path, capsys: Capture) -> None:
    spending = told(capsys, home, "keys", "show", "spending")["account"]
    behind = Behind(accounts={account_of(spending)})
    words = ["tx", "bond", spending, "1", "--from", "spending"]
    answer = await asked(capsys, behind, home, *words, status=1)
    assert "a spending key does not sign Bond transactions" in answer["what"]
    assert behind.asked == []


async def test_models_are_listed_with_what_they_earned(home: Path, capsys: Capture) -> None:
    listed = await asked(capsys, Behind(), home, "model", "list")
    (one,) = listed["models"]
    assert (one["model"], one["tier"], one["requests"]) == ("contracts@1", "slot", 3)
    assert one["earned"] == str(2**63 - 1)
    assert listed["unknown"] == ["contrats"]


async def test_peers_are_listed_added_banned_and_let_in_again(home: Path, capsys: Capture) -> None:
    behind = Behind()
    listed = await asked(capsys, behind, home, "peers", "list")
    assert (listed["peers"][0]["peer_id"], listed["bans"][0]["seconds_left"]) == ("12D3", 60)
    added = await asked(capsys, behind, home, "peers", "add", "/ip4/127.0.0.1/tcp/1/p2p/12D5")
    assert added["peer_id"] == "12D5"
    await asked(capsys, behind, home, "peers", "ban", "12D3", "--for", "12h")
    await asked(capsys, behind, home, "peers", "unban", "12D4")
    assert behind.asked == ["/ip4/127.0.0.1/tcp/1/p2p/12D5", ("12D3", 43_200)]
    refused = await asked(capsys, behind, home, "peers", "unban", "12D3", status=1)
    assert refused["code"] == "peers.not_found"
    refused = await asked(capsys, behind, home, "peers", "ban", "12D3", "--for", "31d", status=1)
    assert refused["code"] == "request.invalid_value"


QUERIES = ["account", "block", "models", "datanets", "contributions", "snapshots"]
QUERIES += ["validators", "params"]


@pytest.mark.parametrize("words", QUERIES)
async def test_query_has_its_schema(home: Path, capsys: Capture, words: str) -> None:
    extra = {"account": [account_text(ALICE)], "contributions": ["facts"]}.get(words, [])
    answer = await asked(capsys, ledger_of(), home, "query", words, *extra)
    assert answer["schema"] == f"olnode.query.{words}/1"
    async with served(ledger_of(), home / "run"):
        text = ["--home", str(home), "query", words, *extra]
        assert await trio.to_thread.run_sync(run, text) == 0


BY_ID = ["query account", "query block", "query tx", "query receipt", "earnings --account"]


@pytest.mark.parametrize("words", BY_ID)
@pytest.mark.parametrize("given", ["a b", "é", "\ud800", "..", "a?by=x", "", "AB" * 32])
def test_id_that_is_none_is_the_callers_fault(
    home: Path, capsys: Capture, words: str, given: str
) -> None:
    """In a path it would be another route, no request at all, or a crash of ours."""
    assert told(capsys, home, *words.split(), given, status=2)["exit"] == 2


async def test_page_that_is_not_the_last_says_how_to_go_on(home: Path, capsys: Capture) -> None:
    rows = (ACCEPTED, replace(ACCEPTED, number=2))
    words = ["--home", str(home), "query", "contributions", "facts"]
    async with served(ledger_of(contributions=rows, looked_at_max=1), home / "run"):
        assert await trio.to_thread.run_sync(run, words) == 0
        first = capsys.readouterr().out
        assert await trio.to_thread.run_sync(run, [*words, "--after", "1"]) == 0
    assert first.endswith("more: --after 1\n")
    assert "more" not in capsys.readouterr().out


async def test_account_that_never_earned_earned_nothing(home: Path, capsys: Capture) -> None:
    answer = await asked(capsys, Behind(), home, "earnings", "--account", account_text(ALICE))
    assert (answer["matured"], answer["items"]) == ("0", [])


async def test_earnings_are_asked_as_the_options_say(home: Path, capsys: Capture) -> None:
    own = told(capsys, home, "keys", "show", "node")["account"]
    for words, query in (
        ([], EarningsQuery()),
        (["--since", "7"], EarningsQuery(since_height=7)),
        (["--since", "1970-01-02", "--by", "day"], EarningsQuery(since_ms=86_400_000, by="day")),
        (["--since", "2024-02-29"], EarningsQuery(since_ms=1_709_164_800_000)),
    ):
        behind = Behind(earned=EARNED)
        answer = await asked(capsys, behind, home, "earnings", *words)
        assert answer["account"] == own
        assert behind.asked.pop() == query
        (item,) = answer["items"]
        assert list(item) == SCHEMAS["olnode.earnings/1 items"]


def test_earnings_can_be_grouped_as_the_ledger_groups_them() -> None:
    assert {"", *BY} == GROUPS.keys()


@pytest.mark.parametrize(
    "words",
    [
        ["--by", "receipt"],
        ["--by", ""],
        ["--since", ""],
        ["--since", "-1"],
        ["--since", "1" * 19],
        ["--since", "\u0661"],
        ["--since", "2023-02-29"],
        ["--since", "1969-12-31"],
        ["--since", "2024-W01-1"],
    ],
)
def test_earnings_that_cannot_be_meant_are_a_usage_fault(
    home: Path, capsys: Capture, words: list[str]
) -> None:
    assert told(capsys, home, "earnings", *words, status=2)["what"].startswith(words[0])


async def test_earnings_for_people_have_a_column_for_what_names_a_row(
    home: Path, capsys: Capture
) -> None:
    cut = replace(EARNED, since_height=4, complete=False)
    async with served(Behind(earned=cut), home / "run"):
        words = ["--home", str(home), "earnings", "--account", account_text(ALICE), "--by", "model"]
        assert await trio.to_thread.run_sync(run, words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "blocks", "matured", "maturing"]
    assert lines[1].split()[:2] == ["contracts", "2"]
    assert lines[-1] == "older than block 4: not counted: more than is read at once"


async def test_stop_waits_until_the_home_is_free(home: Path, capsys: Capture) -> None:
    behind = Behind()
    answer = await asked(capsys, behind, home, "stop", "--timeout", "5")
    assert behind.stopped
    assert answer["stopped"] is True
