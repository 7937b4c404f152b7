"""The HTTP face over a real server on a real Unix socket; behind it stands a table, no chain."""

import json
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from unit.web.behind import ALICE, BIG, DISCLOSURE, EARNED, ID, Behind, served

from consensus.primitives.errors import Invalid
from node.ledger.addresses import account_text
from node.wallet.buying import PaymentFailed
from node.web import answers
from node.web.app import DISCLOSURE_BYTES_MAX, QUESTION_BYTES_MAX, HexText
from node.web.ask import Node, Refusal, Unreachable
from node.web.ledger import TRANSACTION_BYTES_MAX, EarningsQuery


async def ask(path: Path, call: Callable[[Node], Any]) -> Any:
    """Run a blocking call of the command line's client in a thread."""
    return await trio.to_thread.run_sync(call, Node(path))


async def raw(path: Path, request: bytes) -> tuple[int, dict[str, Any]]:
    """(status, JSON) of bytes sent as they are."""

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(65_536):
                answer += chunk
            return answer

    answer = await trio.to_thread.run_sync(talk)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body or b"{}")


def request(method: str, target: str, body: bytes = b"", media_type: str = "") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: olnode\r\nConnection: close\r\n"
    if media_type:
        head += f"Content-Type: {media_type}\r\n"
    if body or method == "POST":
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def test_amounts_are_decimal_text_and_accounts_are_open1(tmp_path: Path) -> None:
    async with served(Behind(next_nonce=5), tmp_path) as path:
        status = await ask(path, lambda daemon: daemon.get("/status"))
        address = account_text(ALICE)
        account = await ask(path, lambda daemon: daemon.get(f"/ledger/accounts/{address}"))
    assert (status["supply"], status["chain_id"], status["height"]) == (str(BIG), ID.hex(), 7)
    assert status["node_account"] == address
    told = {
        "account": address,
        "balance": str(BIG),
        "nonce": 3,
        "next_nonce": 5,
        "maturing": "0",
        "key": address,
    }
    assert account == told


async def test_socket_is_for_its_owner_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async with served(Behind(), tmp_path) as path:
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "olnode.sock"))
    async with served(Behind(), tmp_path) as path:
        assert (await ask(path, lambda daemon: daemon.get("/livez"))) == {"live": True}


async def test_readiness_names_the_check_that_fails(tmp_path: Path) -> None:
    behind = Behind(checks={"storage": True, "peers": False})
    async with served(behind, tmp_path) as path:
        status, told = await raw(path, request("GET", "/readyz"))
    assert (status, told["ready"], told["checks"]["peers"]) == (503, False, False)


async def test_answer_streams_piece_by_piece_and_ends_with_its_receipt(tmp_path: Path) -> None:
    behind = Behind()
    asked = {"model": "contracts@1", "prompt": "why?", "max_fee": "5", "seed": 3}
    async with served(behind, tmp_path) as path:
        lines = await ask(path, lambda daemon: list(daemon.stream("/infer", asked)))
    assert lines[:2] == [{"text": "two "}, {"text": "words"}]
    assert lines[2]["receipt"]["fee"] == str(BIG)
    assert behind.asked[0].max_fee == 5
    assert behind.asked[0].temperature_milli == 0


async def test_refusal_before_the_first_piece_is_a_status(tmp_path: Path) -> None:
    behind = Behind(refuse_at=0)
    asked = {"model": "contracts", "prompt": "why?"}
    async with served(behind, tmp_path) as path:
        with pytest.raises(Refusal) as refusal:
            await ask(path, lambda daemon: list(daemon.stream("/infer", asked)))
    assert (refusal.value.status, refusal.value.code) == (503, "payer.no_provider")


async def test_failure_midway_is_told_and_never_a_silent_end(tmp_path: Path) -> None:
    behind = Behind(refuse_at=1, refusal=Invalid("payer.check_failed", check="fee"))
    asked = {"model": "contracts", "prompt": "why?"}
    heard: list[Any] = []
    async with served(behind, tmp_path) as path:
        with pytest.raises(Refusal) as refusal:
            await ask(path, lambda daemon: heard.extend(daemon.stream("/infer", asked)))
    assert refusal.value.code == "payer.check_failed"
    assert refusal.value.exit_status == 6


async def test_failed_payment_is_a_refusal_also_from_inside_groups(tmp_path: Path) -> None:
    failed = PaymentFailed("payer.locked_max", locked=2, cap=1)
    behind = Behind(refuse_at=0, refusal=ExceptionGroup("nursery", [failed]))
    asked = {"model": "contracts", "prompt": "why?"}
    async with served(behind, tmp_path) as path:
        with pytest.raises(Refusal) as refusal:
            await ask(path, lambda daemon: list(daemon.stream("/infer", asked)))
    assert (refusal.value.status, refusal.value.code) == (402, "payer.locked_max")
    assert refusal.value.exit_status == 5


async def test_own_fault_midway_tells_nothing_of_itself(tmp_path: Path) -> None:
    behind = Behind(refuse_at=1, refusal=RuntimeError("a secret of ours"))
    asked = {"model": "contracts", "prompt": "why?"}
    async with served(behind, tmp_path) as path:
        with pytest.raises(Refusal) as refusal:
            await ask(path, lambda daemon: list(daemon.stream("/infer", asked)))
        assert (await ask(path, lambda daemon: daemon.get("/livez"))) == {"live": True}
    assert refusal.value.code == "request.internal"
    assert "secret" not in str(refusal.value)


async def test_reader_that_leaves_cancels_the_work(tmp_path: Path) -> None:
    behind = Behind(stall=True)
    body = json.dumps({"model": "contracts", "prompt": "why?"}).encode()

    def leave_after_first_piece(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(request("POST", "/infer", body, "application/json"))
            heard = b""
            while b"words" not in heard:
                heard += connection.recv(4_096)

    async with served(behind, tmp_path) as path:
        await trio.to_thread.run_sync(leave_after_first_piece, path)
        with trio.fail_after(2):
            await behind.cancelled.wait()


BAD_QUESTIONS = [
    (b"", "request.invalid_value"),
    (b"{", "request.invalid_value"),
    (b"[" * 10_000, "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "stream": 1}', "request.invalid_value"),
    (b'{"model": "m"}', "request.invalid_value"),
    (b'{"model": "", "prompt": "p"}', "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "max_tokens": 0}', "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "temperature_milli": NaN}', "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "seed": 9223372036854775808}', "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "max_fee": "-1"}', "request.invalid_value"),
    (b'{"model": "m", "prompt": "p", "max_fee": "9223372036854775808"}', "request.bad_parameter"),
    (b'{"model": "m", "prompt": "p", "provider": "open1x"}', "address.length"),
    (b'{"model": "m", "prompt": "\xff"}', "request.invalid_value"),
]


async def test_bad_question_is_refused_with_its_code(tmp_path: Path) -> None:
    behind = Behind()
    async with served(behind, tmp_path) as path:
        for body, code in BAD_QUESTIONS:
            status, told = await raw(path, request("POST", "/infer", body, "application/json"))
            assert (status, told["error"]["code"]) == (400, code), body
    assert behind.asked == []


EARNINGS = f"/ledger/accounts/{account_text(ALICE)}/earnings"
BAD_REQUESTS = [  # method, target, body, media type -> status, code
    ("GET", "/nowhere", b"", "", 404, "request.unknown_path"),
    ("GET", "/stop", b"", "", 405, "request.method"),
    ("GET", "/status?verbos=1", b"", "", 400, "request.unknown_parameter"),
    ("GET", "/ledger/models?limit=0", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/models?limit=101", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/models?after=-1", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/models?after=9223372036854775808", b"", "", 400, "request.bad_parameter"),
    ("GET", EARNINGS + "?since=1", b"", "", 400, "request.unknown_parameter"),
    ("GET", EARNINGS + "?since_height=-1", b"", "", 400, "request.bad_parameter"),
    ("GET", EARNINGS + "?since_ms=9223372036854775808", b"", "", 400, "request.bad_parameter"),
    ("GET", EARNINGS, b"", "", 404, "account.not_found"),
    ("GET", "/ledger/blocks/%D9%A1", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/blocks/8", b"", "", 404, "block.not_found"),
    ("GET", "/ledger/blocks/5", b"", "", 500, "request.internal"),
    ("GET", "/ledger/accounts/open1", b"", "", 400, "address.length"),
    ("GET", "/ledger/accounts/" + account_text(ID), b"", "", 404, "account.not_found"),
    ("GET", "/ledger/transactions/AB", b"", "", 400, "request.bad_id"),
    ("GET", "/ledger/transactions/" + "AB" * 32, b"", "", 400, "request.bad_id"),
    ("GET", "/ledger/transactions/" + "00" * 32, b"", "", 404, "transaction.not_found"),
    ("GET", "/ledger/receipts/" + "00" * 32 + "/proof", b"", "", 404, "ledger.no_proof"),
    ("GET", "/ledger/receipts/" + "00" * 32 + "/shares", b"", "", 404, "receipt.not_found"),
    ("GET", "/ledger/receipts/" + "00" * 32 + "/check", b"", "", 404, "receipt.not_found"),
    ("GET", "/ledger/contributions/8/proof", b"", "", 404, "ledger.no_proof"),
    ("GET", "/ledger/contributions/x/proof", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/contributions/7/proof?height=1", b"", "", 410, "ledger.pruned"),
    ("GET", "/ledger/contributions/7/proof?height=2", b"", "", 409, "ledger.record_changed"),
    ("GET", "/ledger/contributions/7/proof?height=x", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/models/1/versions/4294967296/proof", b"", "", 400, "request.bad_parameter"),
    ("GET", "/ledger/models/1/versions/1/proof", b"", "", 404, "ledger.no_proof"),
    ("GET", "/ledger/channels/AB/proof", b"", "", 400, "request.bad_id"),
    ("GET", "/ledger/transactions/" + "00" * 32 + "/proof", b"", "", 404, "ledger.no_proof"),
    ("GET", "/light/receipts/" + "00" * 32 + "/proof", b"", "", 404, "ledger.no_proof"),
    (
        "GET",
        f"/light/receipts/{ID.hex()}/proof?trusted=x",
        b"",
        "",
        400,
        "request.bad_parameter",
    ),
    ("GET", "/light/receipts/AB/proof", b"", "", 400, "request.bad_id"),
    ("GET", "/light/checkpoint?height=3", b"", "", 400, "request.unknown_parameter"),
    ("GET", "/light/headers", b"", "", 400, "request.bad_parameter"),
    ("GET", "/light/headers?from=0&to=3", b"", "", 400, "request.bad_parameter"),
    ("GET", "/light/headers?from=3&to=2", b"", "", 400, "request.bad_parameter"),
    ("GET", "/light/headers?from=3&to=103", b"", "", 400, "request.bad_parameter"),
    ("POST", "/infer", b"{}", "text/plain", 415, "request.media_type"),
    ("POST", "/peers", b"{}", "application/json", 400, "request.invalid_value"),
    ("POST", "/peers", b'{"address": "x"}', "application/json", 400, "peers.bad_address"),
    (
        "POST",
        "/peers/12D4/ban",
        b'{"seconds": 0}',
        "application/json",
        400,
        "request.invalid_value",
    ),
    (
        *("POST", "/peers/12D4/ban", b'{"seconds": 2592001}', "application/json"),
        *(400, "request.invalid_value"),
    ),
    ("POST", "/peers/12D4/unban?x=1", b"", "", 400, "request.unknown_parameter"),
    ("POST", "/peers/12D3/unban", b"", "", 404, "peers.not_found"),
    ("POST", "/ledger/transactions", b"bad", "application/octet-stream", 400, "tx.nonce"),
]


async def test_bad_request_is_refused_with_status_and_code(tmp_path: Path) -> None:
    async with served(Behind(), tmp_path) as path:
        for method, target, body, media_type, wanted, code in BAD_REQUESTS:
            status, told = await raw(path, request(method, target, body, media_type))
            assert (status, told["error"]["code"]) == (wanted, code), target


@pytest.mark.parametrize(
    ("target", "media_type", "limit"),
    [
        ("/ledger/transactions", "application/octet-stream", TRANSACTION_BYTES_MAX),
        ("/infer", "application/json", QUESTION_BYTES_MAX),
        (f"/receipts/{ID.hex()}/audit", "application/json", DISCLOSURE_BYTES_MAX),
    ],
)
async def test_body_one_byte_over_its_limit_is_refused(
    tmp_path: Path, target: str, media_type: str, limit: int
) -> None:
    async with served(Behind(), tmp_path) as path:
        at_limit = await raw(path, request("POST", target, b" " * limit, media_type))
        over = await raw(path, request("POST", target, b" " * (limit + 1), media_type))
    assert at_limit[1].get("error", {}).get("code") != "request.too_large"
    assert (over[0], over[1]["error"]["code"]) == (413, "request.too_large")


async def test_proof_comes_as_bytes_or_as_hex(tmp_path: Path) -> None:
    target = f"/ledger/receipts/{ID.hex()}/proof"
    async with served(Behind(), tmp_path) as path:
        told = await ask(path, lambda daemon: daemon.get(target))
        file = await ask(path, lambda d: d.get_bytes(target))
    assert (told["proof"], file) == (b"\0proof".hex(), b"\0proof")


async def test_shares_of_a_receipt_name_record_and_contributor(tmp_path: Path) -> None:
    async with served(Behind(), tmp_path) as path:
        told = await ask(path, lambda daemon: daemon.get(f"/ledger/receipts/{ID.hex()}/shares"))
    (row,) = told["records"]
    assert (told["model"], told["version"], told["index_rows"]) == ("contracts", 1, 120)
    assert (row["contributor"], row["position"]) == (account_text(ALICE), 2)
    assert (row["share_bps"], row["score_bps"]) == (10_000, 25_000)


async def test_check_of_a_receipts_shares_tells_what_was_looked_at(tmp_path: Path) -> None:
    async with served(Behind(), tmp_path) as path:
        told = await ask(path, lambda daemon: daemon.get(f"/ledger/receipts/{ID.hex()}/check"))
    assert (told["verdict"], told["why"]) == ("true", "")
    assert (told["paid_rows"], told["panel_rows"], told["drawn_rows"]) == (5, 3, 16)


async def test_light_clients_get_checkpoint_and_headers(tmp_path: Path) -> None:
    async with served(Behind(), tmp_path) as path:
        checkpoint = await ask(path, lambda daemon: daemon.get("/light/checkpoint"))
        headers = await ask(path, lambda daemon: daemon.get("/light/headers?from=6&to=105"))
    assert checkpoint == {"height": 7, "block_id": ID.hex()}
    assert [told["height"] for told in headers["headers"]] == [6, 7], "no more than there are"
    assert headers["headers"][0]["light_block"] == "01"


async def test_receipt_is_proved_under_the_block_that_the_asker_trusts(tmp_path: Path) -> None:
    behind, target = Behind(), f"/light/receipts/{ID.hex()}/proof"
    async with served(behind, tmp_path) as path:
        await ask(path, lambda daemon: daemon.get(target + "?trusted=7"))
        await ask(path, lambda daemon: daemon.get(target))
    assert behind.asked == [7, None]


async def test_list_is_paged_by_number(tmp_path: Path) -> None:
    behind = Behind()
    async with served(behind, tmp_path) as path:
        await ask(path, lambda daemon: daemon.get("/ledger/models?after=7&limit=100"))
        await ask(path, lambda daemon: daemon.get("/ledger/models"))
    assert behind.asked == [(7, 100), (0, 50)]


async def test_earnings_are_asked_from_a_start_and_by_a_group(tmp_path: Path) -> None:
    behind = Behind(earned=EARNED)
    most = 2**63 - 1
    async with served(behind, tmp_path) as path:
        told = await ask(path, lambda daemon: daemon.get(EARNINGS))
        query = f"?since_height={most}&since_ms={most}&by=model"
        await ask(path, lambda daemon: daemon.get(EARNINGS + query))
    assert behind.asked == [EarningsQuery(), EarningsQuery(most, most, "model")]
    assert (told["matured"], told["complete"], told["by"]) == (str(BIG), True, ["model"])
    assert told["items"][0]["model"] == "contracts"


async def test_released_channel_is_told_with_amounts_as_text(tmp_path: Path) -> None:
    row = answers.ChannelAnswer(ID, *(ALICE,) * 5, BIG, BIG, "open", 1, 0)
    behind = Behind(channel=row, unsettled=BIG, in_flight=2)
    async with served(behind, tmp_path) as path:
        told = await trio.to_thread.run_sync(
            lambda: Node(path).post(f"/channels/{ID.hex()}/release")
        )
    assert told == {
        "channel": ID.hex(), "paid": str(BIG), "unsettled": str(BIG), "in_flight": 2
    }  # fmt: skip


async def test_what_opens_a_receipt_is_read_again_as_it_was_shown(tmp_path: Path) -> None:
    behind = Behind()
    async with served(behind, tmp_path) as path:
        shown = await ask(path, lambda node: node.get(f"/receipts/{ID.hex()}/disclosure"))
        told = await ask(path, lambda node: node.post(f"/receipts/{ID.hex()}/audit", shown))
    assert behind.asked == [(ID, DISCLOSURE)]
    assert (told["verdict"], told["early_ppm"], told["receipt"]) == ("pass", 999_900, ID.hex())


async def test_what_is_not_kept_or_not_settled_is_not_found(tmp_path: Path) -> None:
    other = "00" * 32
    async with served(Behind(), tmp_path) as path:
        shown = await ask(path, lambda node: node.get(f"/receipts/{ID.hex()}/disclosure"))
        for call, code in (
            (lambda node: node.get(f"/receipts/{other}/disclosure"), "disclosure.not_found"),
            (
                lambda node: node.post(f"/receipts/{other}/audit", {**shown, "receipt": other}),
                "receipt.not_found",
            ),
        ):
            with pytest.raises(Refusal) as refused:
                await ask(path, call)
            assert (refused.value.status, refused.value.code) == (404, code)


def test_long_disclosure_is_read_in_little_memory() -> None:
    """A pattern that goes by pairs of digits took 300 MB for the longest."""
    body = b'"' + b"ab" * (DISCLOSURE_BYTES_MAX // 2) + b'"'
    tracemalloc.start()
    assert len(msgspec.json.decode(body, type=HexText)) == DISCLOSURE_BYTES_MAX
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * DISCLOSURE_BYTES_MAX


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"receipt": "00" * 32}, "disclosure.receipt"),
        ({"prompt": "000001"}, "infer.ids"),
        ({"answers": ["00000001", "0"]}, "request.invalid_value"),
        ({"answers": [""] * 256}, "request.invalid_value"),
        ({"order": "xx"}, "request.invalid_value"),
        ({"order": "abc"}, "request.invalid_value"),
        ({"order": "abc\n"}, "request.invalid_value"),
        ({"order": None}, "request.invalid_value"),
        ({"more": "00"}, "request.invalid_value"),
    ],
)
async def test_disclosure_that_is_none_is_refused(
    tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    behind = Behind()
    async with served(behind, tmp_path) as path:
        shown = await ask(path, lambda node: node.get(f"/receipts/{ID.hex()}/disclosure"))
        told = {**shown, **change}
        with pytest.raises(Refusal) as refused:
            await ask(path, lambda node: node.post(f"/receipts/{ID.hex()}/audit", told))
    assert (refused.value.code, behind.asked) == (code, [])


async def test_stop_is_handed_on(tmp_path: Path) -> None:
    behind = Behind()
    async with served(behind, tmp_path) as path:
        assert (await ask(path, lambda daemon: daemon.post("/stop"))) == {"stopping": True}
    assert behind.stopped


async def test_home_without_daemon_is_told_as_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as refusal:
        await ask(tmp_path / "olnode.sock", lambda daemon: daemon.get("/status"))
    assert (refusal.value.exit_status, refusal.value.mend) == (4, "olnode start")
