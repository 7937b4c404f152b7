"""Payloads of models and versions are what was typed; names become numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from unit.cli.calls import HASH, MODEL, Capture, asked, ledger_of, sent, told
from unit.web.behind import ID

from node.ledger.wire.transactions import (
    FundMaintenance,
    Payload,
    PublishVersion,
    RegisterModel,
    RetireModel,
    SetPrice,
    decode_transaction,
)

BASE = bytes.fromhex(HASH)
OPEN = 10**9
MODELS = (MODEL, replace(MODEL, number=2, name="law-1", version=3))
REGISTER = ["register-model", "law-2", "--base", HASH, "--licence", "MIT"]
PUBLISH = ["publish-version", "law-1", "--manifest", HASH, "--price-in", "20", "--price-out", "60"]


async def payload(capsys: Capture, home: Path, alice: bytes, *words: str) -> Payload:
    asked_of = ledger_of(alice, models=MODELS)
    await asked(capsys, asked_of, home, "tx", *words)
    (raw,) = sent(asked_of)
    return decode_transaction(raw).payload


async def test_model_is_registered_with_the_probe_called_by_name(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["register-model", "law-2", "--base", HASH, "--licence", "Apache-2.0"]
    made = await payload(capsys, home, alice, *words, "--no-wait")
    assert made == RegisterModel(b"law-2", BASE, 7, 0, 1_000)
    more = ["--probe-datanet", "facts", "--royalty-bps", "5000", "--no-wait"]
    assert await payload(capsys, home, alice, *words, *more) == RegisterModel(
        b"law-2", BASE, 7, 1, 5_000
    )


async def test_number_of_the_registered_model_is_told(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["tx", "register-model", "law-1", "--base", HASH, "--licence", "MIT"]
    answer = await asked(capsys, ledger_of(alice, models=MODELS), home, *words)
    assert (answer["state"], answer["model"]) == ("settled", 2)


async def test_royalty_above_the_ledgers_is_not_charged_for(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    asked_of = ledger_of(alice)
    words = ["tx", *REGISTER, "--royalty-bps", "5001"]
    answer = await asked(capsys, asked_of, home, *words, status=2)
    assert "at most 5000" in answer["what"]
    assert asked_of.asked == []


async def test_base_alone_is_published_at_the_least_price_of_a_call(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    made = await payload(capsys, home, alice, *PUBLISH)
    assert made == PublishVersion(2, b"", 0, b"", BASE, b"", 20 * OPEN, 60 * OPEN, 1_000_000, ())


async def test_version_names_all_that_it_is_made_of(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    of = ["--adapter", HASH, "--snapshot", "1", "--index-root", ID.hex(), "--probe", HASH]
    parts = ["--part", "law-1:2000", "--part", "1@7:1000", "--price-call", "0.5"]
    made = await payload(capsys, home, alice, *PUBLISH, *of, *parts)
    assert made == PublishVersion(
        model=2,
        adapter=BASE,
        snapshot=1,
        index_root=ID,
        manifest=BASE,
        probe=BASE,
        p_in=20 * OPEN,
        p_out=60 * OPEN,
        p_call=OPEN // 2,
        parts=((1, 7, 1_000), (2, 3, 2_000)),
    )


async def test_cost_of_a_version_grows_with_its_records(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    of = ["--adapter", HASH, "--snapshot", "1", "--index-root", HASH]
    words = ["tx", *PUBLISH, "--dry-run"]
    alone = await asked(capsys, ledger_of(models=MODELS), home, *words)
    indexed = await asked(capsys, ledger_of(models=MODELS), home, *words, *of)
    assert int(alone["cost"]) == 3 * OPEN
    assert int(indexed["cost"]) == 3 * OPEN + 3 * 100_000


async def test_price_that_is_not_named_stays(home: Path, alice: bytes, capsys: Capture) -> None:
    for words, prices in (
        (["--price-in", "0.5"], (OPEN // 2, 20, 10**6)),
        (["--price-out", "0.5", "--price-call", "1"], (10, OPEN // 2, OPEN)),
    ):
        made = await payload(capsys, home, alice, "set-price", "law-1", *words)
        assert made == SetPrice(2, 3, *prices)


async def test_price_of_an_older_version_takes_all_three(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    words = ["set-price", "law-1", "--version", "2", "--price-in", "1", "--price-out", "2"]
    made = await payload(capsys, home, alice, *words, "--price-call", "3")
    assert made == SetPrice(2, 2, OPEN, 2 * OPEN, 3 * OPEN)
    asked_of = ledger_of(alice, models=MODELS)
    answer = await asked(capsys, asked_of, home, "tx", *words, status=2)
    assert answer["what"] == "all three prices, for 2 is not the current version of law-1"
    assert sent(asked_of) == []


async def test_price_of_a_call_below_the_least_is_not_charged_for(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    asked_of = ledger_of(alice, models=MODELS)
    words = ["tx", "set-price", "law-1", "--price-call", "0.000999999"]
    await asked(capsys, asked_of, home, *words, status=2)
    assert sent(asked_of) == []


async def test_model_is_retired_with_or_without_a_successor(
    home: Path, alice: bytes, capsys: Capture
) -> None:
    assert await payload(capsys, home, alice, "retire-model", "law-1") == RetireModel(2, 0)
    words = ["retire-model", "law-1", "--successor", "facts-1"]
    assert await payload(capsys, home, alice, *words) == RetireModel(2, 1)


async def test_model_is_funded_by_name_or_number(home: Path, alice: bytes, capsys: Capture) -> None:
    for called in ("law-1", "2"):
        made = await payload(capsys, home, alice, "fund-maintenance", called, "1.5")
        assert made == FundMaintenance(2, 1_500_000_000)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["fund-maintenance", "none", "1"], "model.not_found"),
        (["set-price", "none", "--price-in", "1"], "model.not_found"),
        (["retire-model", "none"], "model.not_found"),
        (["retire-model", "law-1", "--successor", "none"], "model.not_found"),
        (["publish-version", "3", *PUBLISH[2:]], "model.not_found"),
        ([*PUBLISH, "--part", "none:1"], "model.not_found"),
        (
            [*PUBLISH, "--adapter", HASH, "--snapshot", "2", "--index-root", HASH],
            "snapshot.not_found",
        ),
        ([*REGISTER, "--probe-datanet", "none"], "datanet.not_found"),
    ],
)
async def test_what_the_ledger_does_not_have_is_told_before_signing(
    home: Path, alice: bytes, capsys: Capture, words: list[str], code: str
) -> None:
    asked_of = ledger_of(alice, models=MODELS)
    answer = await asked(capsys, asked_of, home, "tx", *words, status=1)
    assert answer["code"] == code
    assert answer["mend"].startswith("olnode query ")
    assert sent(asked_of) == []


@pytest.mark.parametrize(
    "words",
    [
        ["register-model", "L", "--base", HASH, "--licence", "MIT"],
        ["register-model", "law-2", "--base", "x", "--licence", "MIT"],
        ["register-model", "law-2", "--base", HASH, "--licence", "none"],
        ["register-model", "law-2", "--base", HASH],
        [*REGISTER, "--royalty-bps", "-1"],
        ["publish-version", "law-1"],
        [*PUBLISH, "--adapter", "x"],
        [*PUBLISH, "--probe", "x"],
        [*PUBLISH, "--snapshot", "1"],
        [*PUBLISH, "--index-root", HASH],
        [*PUBLISH, "--snapshot", "1", "--index-root", HASH],
        [*PUBLISH, "--price-call", "x"],
        ["fund-maintenance", "law-1", "x"],
        ["set-price", "law-1"],
        ["set-price", "law-1", "--price-in", "x"],
        ["set-price", "law-1", "--price-in", "1", "--version", "0"],
    ],
)
def test_bad_word_ends_with_two_and_asks_nobody(
    home: Path, alice: bytes, capsys: Capture, words: list[str]
) -> None:
    assert told(capsys, home, "tx", *words, status=2)["exit"] == 2


@pytest.mark.parametrize(
    "more",
    [
        ["--price-call", "0.000999999"],
        ["--part", "law-1"],
        ["--part", ":1"],
        ["--part", "law-1@:1"],
        ["--part", "law-1@x:1"],
        ["--part", "law-1:10000"],
        ["--part", "law-1:-1"],
        [word for _ in range(5) for word in ("--part", "law-1:1")],
    ],
)
async def test_bad_value_by_the_ledgers_rules_ends_with_two(
    home: Path, alice: bytes, capsys: Capture, more: list[str]
) -> None:
    asked_of = ledger_of(alice, models=MODELS)
    answer = await asked(capsys, asked_of, home, "tx", *PUBLISH, *more, status=2)
    assert more[0] in answer["what"]
    assert sent(asked_of) == []
